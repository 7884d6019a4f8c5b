"""python -m export: a checkpoint -> an ONNX file for zipsdk, and on to a TensorRT plan."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from export import checkpoints, denoises
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
what goes in
  256x256_diffusion_uncond.pt   OpenAI's guided-diffusion and improved-diffusion checkpoints, without classes. Shapes
                                tell most of the architecture; flags tell the rest. OpenAI's 256x256 model needs none.
  a folder or .safetensors      diffusers' UNet2DModel of the DDPM kind: a pipeline's folder, its unet folder, or the
                                weights with config.json beside them. scheduler_config.json tells the noise process.
  celeba_hq.ckpt                Ho et al.'s layout, as in DDRM, DDNM and ermongroup/ddim.
  ema.safetensors               what python -m export.train leaves.
  Only tensors are read; a checkpoint that needs unpickling is refused.

which noise process
  Schedules: linear, scaled_linear, cosine (squaredcos_cap_v2), or trained_betas; predictions: epsilon, v, sample; the
  exporter turns v and sample into epsilon. A flag wins over the file, and a line says so. How diffusers samples
  (clip_sample, thresholding, spacing) is not read; zipsdk purify --help has what it takes in their place.
  Flow-matching, variance-exploding, EDM, consistency and zero-terminal-SNR models are refused.

what comes out
  DIR/NAME.onnx                 (NAME-fp16.onnx, NAME-bf16.onnx); before it gets its name, the model must denoise noised
                                images, and the file must compute what the torch model does
  DIR/NAME.onnx.data            the weights, where they are above 1.8 GB; it must stay beside the .onnx file
  DIR/NAME.onnx.json            hashes, which zipsdk checks when it loads, and the numbers of both checks

which precision
  fp32 for a CPU, best with --norm instance; fp16 for a GPU; bf16 for a GPU (Ampere or later) where fp16 overflows,
  which the comparison tells you.

examples
  python -m export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 \\
      --license "MIT (code); model card: research use" --training-data "ILSVRC 2012"
  python -m export ddpm-cifar10-32/ -o models
  python -m export my-pipeline/ -o models --images photos/     # checked on images like those it was trained on
  python -m export ema_0.9999_500000.pt -o models --image-size 32 --heads 4 --noise-schedule cosine --timesteps 4000
  python -m export celeba_hq.ckpt -o models
  python -m export runs/zip-tiny/ema.safetensors -o models --name zip-tiny --store-fp16 --norm instance
  python -m export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 --engine   # and a plan at once
  python -m export --random-adm -o models --precision fp16     # the true 256x256 architecture, to measure speed with
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a diffusion UNet's checkpoint to an ONNX file for zipsdk.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="file or folder; see below")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument("--name", help="of the model and its file; default: the checkpoint's")
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the convolutions; default fp32")
    p.add_argument("--store-fp16", action="store_true", help="fp32 arithmetic, weights stored as fp16: half the file")
    p.add_argument("--norm", choices=NORMS, default="group",
                   help="form of group normalisation: group (default), or instance, faster on a CPU")  # fmt: skip
    p.add_argument("--opset", type=int, default=21, help="ONNX opset, 21 (default) or later")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")

    g = p.add_argument_group("architecture: what a guided-diffusion checkpoint does not tell")
    g.add_argument("--image-size", type=int, help="side it was trained on; default: by guided-diffusion's channel_mult")
    heads = g.add_mutually_exclusive_group()
    heads.add_argument("--heads", type=int, metavar="N", help="attention heads at every level (num_heads)")
    heads.add_argument(
        "--head-channels", type=int, metavar="N", help="channels of an attention head (num_head_channels)"
    )
    g.add_argument("--norm-groups", type=int, help="groups of the normalization; default 32")
    g.add_argument(
        "--attention-order", choices=("legacy", "new"), help="default legacy (use_new_attention_order False)"
    )
    g.add_argument("--rescale-timesteps", action="store_true",
                   help="the network sees 1000 t / T (improved-diffusion's default)")  # fmt: skip
    g.add_argument("--random-adm", action="store_true", help="no CHECKPOINT: OpenAI's 256x256 UNet, random weights")
    g.add_argument("--channels", type=int, default=256, help="of --random-adm: its width; default %(default)s")

    g = p.add_argument_group("noise process: default what the checkpoint tells, else linear, epsilon, 1000 steps")
    g.add_argument("--noise-schedule", choices=[name for name in SCHEDULES if name != "betas"], help="of the betas")
    g.add_argument("--prediction", choices=PREDICTIONS, help="what the network gives; sample is x0 (predict_xstart)")
    g.add_argument("--timesteps", type=int, metavar="T", help="noise levels it was trained with")
    g.add_argument("--beta-start", type=float, help="first beta of a linear schedule; default 0.0001, "
                   "of guided-diffusion times 1000 / T")  # fmt: skip
    g.add_argument("--beta-end", type=float, help="last beta of a linear schedule; default 0.02, likewise")

    g = p.add_argument_group("the check that it denoises")
    g.add_argument("--images", type=Path, metavar="FOLDER|ZIP",
                   help="images like those it was trained on; default: drawn ones")  # fmt: skip
    g.add_argument("--no-denoise-check", action="store_true", help="leave it out, which the sidecar records")

    g = p.add_argument_group("what the file says of the model")
    g.add_argument("--license", default="", help="of the weights")
    g.add_argument("--training-data", default="", help="what it was trained on")
    g.add_argument("--min-side", type=int, help="smallest side it takes; default: the image size, 32 without attention")
    g.add_argument("--max-side", type=int, help="largest side it takes; default: the image size, 512 without attention")
    g.add_argument("--transforms", nargs="+", default=["blur2", "gray"], help="recommended; default: blur2 gray")
    g.add_argument("--lam", type=float, default=10.0, help="recommended lambda; default %(default)s")

    g = p.add_argument_group("TensorRT; zipsdk build --help says more")
    g.add_argument("--engine", action="store_true", help="go on and compile DIR/NAME.plan")
    g.add_argument("--flavor", choices=tuple(FLAVORS), help="default: what is installed")
    g.add_argument(
        "--batch", default="1,8,64", metavar="B,...", help="the largest batch of each profile; default 1,8,64"
    )
    g.add_argument("--target", metavar="sm86,...", help="GPUs, TensorRT-RTX only; default: all that it knows")
    g.add_argument("--overwrite", action="store_true", help="write over a DIR/NAME.plan that is there")
    return p


def default_name(path: Path) -> str:
    """The file's name, or its folder's where the file's says nothing."""
    path = path.resolve()
    if not path.is_dir() and path.stem not in ("ema", "diffusion_pytorch_model"):
        return path.stem
    folder = path if path.is_dir() else path.parent
    return folder.parent.name if folder.name == "unet" else folder.name  # the pipeline's name


def spec_for(model: UNet, args: argparse.Namespace, name: str, sha256: str, training_data: str) -> ModelSpec:
    config = model.config
    size, multiple = config.image_size, config.downsampling
    # Attention learns over as many pixels as it was trained on; convolutions alone do not mind the size.
    free = not config.attention_downsampling
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
    """Return what the command line says of the checkpoint."""
    return Flags(**{field: getattr(args, field) for field in Flags.__dataclass_fields__})


def denoise_check(args: argparse.Namespace, model: UNet, spec: ModelSpec) -> dict[str, Any]:
    """Return the record of `export.denoises.check`, or why it was left out."""
    if args.random_adm:
        return {"skipped": "random weights"}
    if args.no_denoise_check:
        return {"skipped": "--no-denoise-check"}
    images = denoises.load_images(args.images, spec) if args.images else None
    others = denoises.other_readings(args.checkpoint, flags_of(args), model.config)
    record = denoises.check(denoises.of_torch(model), spec, images, others)
    shares = ", ".join(f"{level['share']:.2f} at t = {level['t']}" for level in record["levels"].values())
    print(f"  denoises: error {shares}, relative to the best linear estimate (at most {record['largest_share']:g})")
    return record


def run(args: argparse.Namespace) -> Path:
    """What the command does; returns the model's path. Raises ModelError, and what `plan.build` does with --engine."""
    started = time.monotonic()
    batches = [int(b) if b.isdecimal() else 0 for b in args.batch.split(",")]
    targets = args.target.split(",") if args.target else None
    check_temporary_folder()
    if args.engine:  # before minutes of work, and not after them
        BuildRequest.from_options(args.flavor, batches, targets)
    flags = flags_of(args)
    if args.random_adm:
        refuse(flags, Flags.__dataclass_fields__, Path("--random-adm"), "the published model")
        model, sha256 = checkpoints.random_adm(args.channels), ""
        width = "" if args.channels == 256 else f"-{args.channels}ch"
        name, training_data = args.name or f"adm256{width}-random-weights", "none: random weights"
        if "random" not in name:
            name += "-random-weights"  # whatever it is called, nobody should mistake it for the model
    else:
        model, sha256 = checkpoints.load(args.checkpoint, flags, print)
        name, training_data = args.name or default_name(args.checkpoint), args.training_data
    read = time.monotonic()
    output: Path = args.output
    path = output / (f"{name}.onnx" if args.precision == "fp32" else f"{name}-{args.precision}.onnx")
    plan = path.with_suffix(".plan")
    if args.engine and plan.exists() and not args.overwrite:
        raise InputError(f"{plan}: is there already; give another --name, or --overwrite")
    spec = spec_for(model, args, name, sha256, training_data)
    store = "fp16" if args.store_fp16 else "same"
    report = export_onnx(model, spec, path, args.precision, opset=args.opset, store=store, norm=args.norm,
                         denoises=denoise_check(args, model, spec))  # fmt: skip
    done = time.monotonic()

    files = [f for f in (path, path.with_name(path.name + ".data"), sidecar_path(path)) if f.exists()]
    sides = f"{spec.min_side} to {spec.max_side} by {spec.multiple}" if spec.flexible else f"{spec.image_size} only"
    errors = ", ".join(f"{e:.1e} at t = {t}" for t, e in report["parity"]["relative_error"].items())
    print(f"{name}: {report['parameters']:,} parameters in {report['tensors']} tensors; sides {sides}")
    print(f"  {args.precision}{', weights stored as fp16' if args.store_fp16 else ''}, opset {args.opset}")
    print(f"  relative error {errors} (at most {report['parity']['tolerance']:g}; {report['parity']['got']})")
    for file in files:
        print(f"  {file} {file.stat().st_size / 1e6:,.2f} MB")
    print(f"  {read - started:.1f} s to read, {done - read:.1f} s to export and compare")
    if args.engine:
        # told to somebody who waits: a big UNet takes minutes
        print(f"  compiling {plan} ...", flush=True)
        built = build(path, plan, flavor=args.flavor, batches=batches, targets=targets)["plan"]
        took = time.monotonic() - done
        print(f"  {plan} {plan.stat().st_size / 1e6:,.2f} MB for {', '.join(built['targets'])} by {built['flavor']} "
              f"{built['runtime']} in {took:.1f} s")  # fmt: skip
    return path


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if (args.checkpoint is None) != args.random_adm:
        p.error("give a CHECKPOINT, or --random-adm in its place")
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
