"""Export a checkpoint to an ONNX file for zipsdk and, if asked, to a TensorRT plan: the command."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from export import checkpoints, denoise_check
from export.flags import Flags, refuse
from export.to_onnx import NORMS, check_temporary_folder, export_onnx
from export.unet import UNet
from export.unet_config import PREDICTIONS
from zipsdk.engines.tensorrt.build import build
from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.engines.tensorrt.request import BuildRequest
from zipsdk.errors import InputError, ZipSdkError
from zipsdk.models.noise_schedule import SCHEDULES
from zipsdk.models.sidecar import sidecar_path
from zipsdk.models.spec import PRECISIONS, ModelSpec
from zipsdk.transforms import recommended

EXAMPLES = """\
input
  256x256_diffusion_uncond.pt   OpenAI's guided-diffusion and improved-diffusion checkpoints, without classes. Shapes
                                give most of the architecture, flags the rest. OpenAI's 256x256 model needs no flags.
  a folder or .safetensors      diffusers' UNet2DModel of the DDPM kind: a pipeline's folder, its unet folder, or the
                                weights with config.json beside them. scheduler_config.json gives the noise process.
  celeba_hq.ckpt                Ho et al.'s layout, as in DDRM, DDNM and ermongroup/ddim.
  ema.safetensors               written by python -m export.train.
  Only tensors are read; checkpoints with other Python objects are refused.

noise process
  Schedules: linear, scaled_linear, cosine (squaredcos_cap_v2), or trained_betas. Predictions: epsilon, v, sample; v and
  sample are converted to epsilon. Flags replace values of the file; each replacement is printed. diffusers' options of
  sampling (clip_sample, thresholding, spacing) are ignored; for zipsdk's options see zipsdk purify --help.
  Flow-matching, variance-exploding, EDM, consistency and zero-terminal-SNR models are refused.

output
  DIR/NAME.onnx                 the model (NAME-fp16.onnx, NAME-bf16.onnx); written only if the model denoises noised
                                images and the file computes what the torch model does
  DIR/NAME.onnx.data            the weights, if they exceed 1.8 GB; keep it beside the .onnx file
  DIR/NAME.onnx.json            hashes, which zipsdk checks when it loads the model, and the results of both checks

precision
  fp32 for a CPU, best with --norm instance; fp16 for a GPU; bf16 for a GPU (Ampere or later) if the export reports that
  fp16 overflows.

examples
  python -m export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 \\
      --license "MIT (code); model card: research use" --training-data "ILSVRC 2012"
  python -m export ddpm-cifar10-32/ -o models
  python -m export my-pipeline/ -o models --images photos/     # checked on images like the training images
  python -m export ema_0.9999_500000.pt -o models --image-size 32 --heads 4 --noise-schedule cosine --timesteps 4000
  python -m export celeba_hq.ckpt -o models
  python -m export runs/zip-tiny/ema.safetensors -o models --name zip-tiny --store-fp16 --norm instance
  python -m export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 --engine   # and a plan
  python -m export --random-adm -o models --precision fp16     # the 256x256 architecture, for timing
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m export",
        description="Export the checkpoint of a diffusion UNet to an ONNX file for zipsdk.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="file or folder; see below")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument("--name", help="name of the model and its file; default: the checkpoint's")
    p.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="precision of the convolutions; default: fp32"
    )
    p.add_argument("--store-fp16", action="store_true", help="fp32 arithmetic, weights stored as fp16: half the file")
    p.add_argument("--norm", choices=NORMS, default="group",
                   help="form of group normalization: group (default), or instance, faster on a CPU")  # fmt: skip
    p.add_argument("--opset", type=int, default=21, help="ONNX opset, 21 or later; default: 21")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")

    g = p.add_argument_group("architecture: values that guided-diffusion checkpoints do not hold")
    g.add_argument(
        "--image-size", type=int, help="side of the training images; default: by guided-diffusion's channel_mult"
    )
    heads = g.add_mutually_exclusive_group()
    heads.add_argument("--heads", type=int, metavar="N", help="attention heads at every level (num_heads)")
    heads.add_argument("--head-channels", type=int, metavar="N", help="channels per attention head (num_head_channels)")
    g.add_argument("--norm-groups", type=int, help="groups of the normalization; default: 32")
    g.add_argument(
        "--attention-order", choices=("legacy", "new"), help="default: legacy (use_new_attention_order False)"
    )
    g.add_argument("--rescale-timesteps", action="store_true",
                   help="the network takes 1000 t / T (improved-diffusion's default)")  # fmt: skip
    g.add_argument("--random-adm", action="store_true", help="no CHECKPOINT: OpenAI's 256x256 UNet, random weights")
    g.add_argument("--channels", type=int, default=256, help="width of --random-adm; default: %(default)s")

    g = p.add_argument_group("noise process (default: the checkpoint's, or linear, epsilon, 1000 steps)")
    g.add_argument(
        "--noise-schedule", choices=[name for name in SCHEDULES if name != "betas"], help="schedule of the betas"
    )
    g.add_argument("--prediction", choices=PREDICTIONS, help="prediction of the network; sample is x0 (predict_xstart)")
    g.add_argument("--timesteps", type=int, metavar="T", help="number of noise levels in training")
    g.add_argument("--beta-start", type=float, help="first beta of a linear schedule; default: 0.0001, "
                   "times 1000 / T for guided-diffusion")  # fmt: skip
    g.add_argument("--beta-end", type=float, help="last beta of a linear schedule; default: 0.02, likewise")

    g = p.add_argument_group("check that the model denoises")
    g.add_argument("--images", type=Path, metavar="FOLDER|ZIP",
                   help="images like the training images; default: drawn ones")  # fmt: skip
    g.add_argument("--no-denoise-check", action="store_true", help="skip the check; the sidecar records it")

    g = p.add_argument_group("metadata of the model")
    g.add_argument("--license", default="", help="license of the weights")
    g.add_argument("--training-data", default="", help="description of the training data")
    g.add_argument("--min-side", type=int, help="smallest side; default: the image size, or 32 without attention")
    g.add_argument("--max-side", type=int, help="largest side; default: the image size, or 512 without attention")
    g.add_argument(
        "--transforms", nargs="+", default=["blur2", "gray"], help="recommended transforms; default: blur2 gray"
    )
    g.add_argument("--lam", type=float, default=10.0, help="recommended lambda; default: %(default)s")

    g = p.add_argument_group("TensorRT (see zipsdk build --help)")
    g.add_argument("--engine", action="store_true", help="also compile DIR/NAME.plan")
    g.add_argument("--flavor", choices=tuple(FLAVORS), help="default: the installed one")
    g.add_argument(
        "--batch", default="1,8,64", metavar="B,...", help="largest batch of each profile; default: %(default)s"
    )
    g.add_argument("--target", metavar="sm86,...", help="GPUs, TensorRT-RTX only; default: all that it supports")
    g.add_argument("--overwrite", action="store_true", help="replace an existing DIR/NAME.plan")
    return p


def default_name(path: Path) -> str:
    """Return a checkpoint's name: the file's, or its folder's if the file has a standard name."""
    path = path.resolve()
    if not path.is_dir() and path.stem not in ("ema", "diffusion_pytorch_model"):
        return path.stem
    folder = path if path.is_dir() else path.parent
    return folder.parent.name if folder.name == "unet" else folder.name  # the pipeline's name


def spec_for(model: UNet, args: argparse.Namespace, name: str, sha256: str, training_data: str) -> ModelSpec:
    """Return the spec of a model.

    Args:
        model: its sizes and its noise schedule are taken.
        args: the command line, for everything else.
        name: of the model.
        sha256: of the checkpoint.
        training_data: free text.

    Raises:
        InputError: ``--transforms`` has an unknown name.
    """
    config = model.config
    size, multiple = config.image_size, config.downsampling
    free = not config.attention_downsampling  # attention works at the training size only
    spec = ModelSpec(
        name=name,
        image_size=size,
        multiple=multiple,
        min_side=args.min_side or (min(size, max(32, multiple)) if free else size),
        max_side=args.max_side or (max(size, 512) if free else size),
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        timesteps=config.timesteps,
        betas=config.betas,
        source_sha256=sha256,
        license=args.license,
        training_data=training_data,
        transforms=tuple(args.transforms),
        lam=args.lam,
    )
    recommended(spec)  # refuse unknown names before the export
    return spec


def flags_of(args: argparse.Namespace) -> Flags:
    """Return the flags of the command line that describe the checkpoint."""
    return Flags(**{field: getattr(args, field) for field in Flags.__dataclass_fields__})


def check_denoising(args: argparse.Namespace, model: UNet, spec: ModelSpec) -> dict[str, Any]:
    """Check that the model denoises, and print the result.

    Returns:
        The record of `export.denoise_check.check`, or the reason why it was skipped.

    Raises:
        ModelError: the model does not denoise.
        InputError: ``--images`` has no image.
    """
    if args.random_adm:
        return {"skipped": "random weights"}
    if args.no_denoise_check:
        return {"skipped": "--no-denoise-check"}
    images = denoise_check.load_images(args.images, spec) if args.images else None
    others = denoise_check.other_readings(args.checkpoint, flags_of(args), model.config)
    record = denoise_check.check(denoise_check.of_torch(model), spec, images, others)
    shares = ", ".join(f"{level['share']:.2f} at t = {level['t']}" for level in record["levels"].values())
    print(f"  denoises: error {shares}, relative to the best linear estimate (at most {record['largest_share']:g})")
    return record


def load(args: argparse.Namespace) -> tuple[UNet, ModelSpec]:
    """Load the checkpoint, or build the random model, and describe it by a spec.

    Raises:
        ModelError: as `export.checkpoints.load`.
    """
    flags = flags_of(args)
    if not args.random_adm:
        model, sha256 = checkpoints.load(args.checkpoint, flags, print)
        return model, spec_for(model, args, args.name or default_name(args.checkpoint), sha256, args.training_data)
    refuse(flags, Flags.__dataclass_fields__, Path("--random-adm"), "the published model")
    model = checkpoints.random_adm(args.channels)
    width = "" if args.channels == 256 else f"-{args.channels}ch"
    name = args.name or f"adm256{width}-random-weights"
    if "random" not in name:
        name += "-random-weights"  # never to be mistaken for the trained model
    return model, spec_for(model, args, name, "", "none: random weights")


def print_report(path: Path, spec: ModelSpec, report: dict[str, Any]) -> None:
    """Print the sizes and the comparison of an exported model, and its files."""
    sides = f"{spec.min_side} to {spec.max_side} by {spec.multiple}" if spec.flexible else f"{spec.image_size} only"
    parity = report["parity"]
    errors = ", ".join(f"{e:.1e} at t = {t}" for t, e in parity["relative_error"].items())
    print(f"{spec.name}: {report['parameters']:,} parameters in {report['tensors']} tensors; sides {sides}")
    print(f"  relative error {errors} (at most {parity['tolerance']:g}; {parity['got']})")
    for file in (path, path.with_name(path.name + ".data"), sidecar_path(path)):
        if file.exists():
            print(f"  {file} {file.stat().st_size / 1e6:,.2f} MB")


def run(args: argparse.Namespace) -> Path:
    """Export a model as requested on the command line.

    Returns:
        The path of the ONNX file.

    Raises:
        ModelError: the checkpoint cannot be read, or a check failed; nothing was written.
        InputError: the plan exists, there is no folder for temporary files, or as `zipsdk.engines.tensorrt.build`.
    """
    started = time.monotonic()
    batches = [int(b) if b.isdecimal() else 0 for b in args.batch.split(",")]
    targets = args.target.split(",") if args.target else None
    check_temporary_folder()
    if args.engine:  # check the options before minutes of work
        BuildRequest.from_options(args.flavor, batches, targets)
    model, spec = load(args)
    loaded = time.monotonic()
    output: Path = args.output
    path = output / (f"{spec.name}.onnx" if args.precision == "fp32" else f"{spec.name}-{args.precision}.onnx")
    plan = path.with_suffix(".plan")
    if args.engine and plan.exists() and not args.overwrite:
        raise InputError(f"{plan}: exists already, expected a new file; give another --name, or --overwrite")
    store = "fp16" if args.store_fp16 else "same"
    report = export_onnx(model, spec, path, args.precision, opset=args.opset, store=store, norm=args.norm,
                         denoises=check_denoising(args, model, spec))  # fmt: skip
    done = time.monotonic()
    print_report(path, spec, report)
    print(f"  {args.precision}{', weights stored as fp16' if args.store_fp16 else ''}, opset {args.opset}")
    print(f"  {loaded - started:.1f} s to load, {done - loaded:.1f} s to export and compare")
    if args.engine:
        print(f"  compiling {plan} ...", flush=True)  # takes minutes for large models
        built = build(path, plan, flavor=args.flavor, batches=batches, targets=targets)["plan"]
        took = time.monotonic() - done
        print(f"  {plan} {plan.stat().st_size / 1e6:,.2f} MB for {', '.join(built['targets'])} by {built['flavor']} "
              f"{built['runtime']} in {took:.1f} s")  # fmt: skip
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    p = parser()
    args = p.parse_args(argv)
    if (args.checkpoint is None) != args.random_adm:
        p.error("give a CHECKPOINT or --random-adm, not both")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        run(args)
    except (ZipSdkError, OSError) as e:
        print(f"python -m export: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
