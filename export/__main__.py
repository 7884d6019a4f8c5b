"""python -m export: a checkpoint -> an ONNX file for zipsdk, and on to a TensorRT plan."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from export import checkpoint
from export.onnx import NORMS, export_onnx
from export.unet import UNet
from zipsdk.engines.plan import FLAVOURS, build, check_options
from zipsdk.errors import InputError, ZipError
from zipsdk.files import sidecar_path
from zipsdk.spec import PRECISIONS, ModelSpec

EXAMPLES = """\
what goes in
  256x256_diffusion_uncond.pt   OpenAI's guided-diffusion checkpoints (unconditional ones). Shapes tell most of the
                                architecture; the flags under "guided-diffusion" tell the rest, and their defaults fit
                                OpenAI's 256x256 model.
  a folder or .safetensors      diffusers' UNet2DModel of the DDPM kind, with its config.json (google/ddpm-cifar10-32).
  ema.safetensors               what python -m export.train leaves.
  Only tensors are read; a checkpoint that needs unpickling is refused.

what comes out
  DIR/NAME.onnx                 (NAME-fp16.onnx, NAME-bf16.onnx) compared with the torch model before it gets its name
  DIR/NAME.onnx.data            the weights, where they are above 1.8 GB; it must stay beside the .onnx file
  DIR/NAME.onnx.json            hashes, which zipsdk checks when it loads, and the numbers of the comparison

which precision
  fp32 for a CPU, best with --norm instance; fp16 for a GPU; bf16 for a GPU (Ampere or later) where fp16 overflows,
  which the comparison tells you.

examples
  python -m export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 \\
      --licence "MIT (code); model card: research use" --training-data "ILSVRC 2012"
  python -m export ddpm-cifar10-32/ -o models
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

    g = p.add_argument_group("guided-diffusion checkpoints: what shapes cannot tell")
    default = checkpoint.Flags()
    g.add_argument("--image-size", type=int, default=default.image_size, help="trained on; default %(default)s")
    g.add_argument("--head-channels", type=int, default=default.head_channels, help="default %(default)s")
    g.add_argument("--norm-groups", type=int, default=default.norm_groups, help="default %(default)s")
    g.add_argument("--attention-order", choices=("legacy", "new"), default="legacy", help="default legacy")
    g.add_argument("--timesteps", type=int, default=default.timesteps, help="default %(default)s")
    g.add_argument("--beta-start", type=float, default=default.beta_start, help="default %(default)s")
    g.add_argument("--beta-end", type=float, default=default.beta_end, help="default %(default)s")
    g.add_argument("--random-adm", action="store_true", help="no CHECKPOINT: OpenAI's 256x256 UNet, random weights")
    g.add_argument("--channels", type=int, default=256, help="of --random-adm: its width; default %(default)s")

    g = p.add_argument_group("what the file says of the model")
    g.add_argument("--licence", default="", help="of the weights")
    g.add_argument("--training-data", default="", help="what it was trained on")
    g.add_argument("--min-side", type=int, help="smallest side it takes; default: the canvas, 32 without attention")
    g.add_argument("--max-side", type=int, help="largest side it takes; default: the canvas, 512 without attention")
    g.add_argument("--transforms", nargs="+", default=["blur2", "gray"], help="recommended; default: blur2 gray")
    g.add_argument("--lam", type=float, default=10.0, help="recommended lambda; default %(default)s")

    g = p.add_argument_group("TensorRT; zipsdk build --help says more")
    g.add_argument("--engine", action="store_true", help="go on and compile DIR/NAME.plan")
    g.add_argument("--flavour", choices=tuple(FLAVOURS), help="default: what is installed")
    g.add_argument(
        "--batch", default="1,8,64", metavar="B,...", help="the largest batch of each profile; default 1,8,64"
    )
    g.add_argument("--target", metavar="sm86,...", help="GPUs, TensorRT-RTX only; default: all that it knows")
    g.add_argument("--overwrite", action="store_true", help="write over a DIR/NAME.plan that is there")
    return p


def default_name(path: Path) -> str:
    """The file's name, or its folder's where the file's says nothing."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.stem in ("ema", "diffusion_pytorch_model") else path.stem


def spec_for(model: UNet, args: argparse.Namespace, name: str, sha256: str, training_data: str) -> ModelSpec:
    config = model.config
    canvas, multiple = config.image_size, config.downsampling
    # Attention learns over as many pixels as it was trained on; convolutions alone do not mind the size.
    free = not config.attention_downsampling
    return ModelSpec(
        name=name,
        canvas=canvas,
        multiple=multiple,
        min_side=args.min_side or (min(canvas, max(32, multiple)) if free else canvas),
        max_side=args.max_side or (max(canvas, 512) if free else canvas),
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        timesteps=config.timesteps,
        source_sha256=sha256,
        licence=args.licence,
        training_data=training_data,
        transforms=tuple(args.transforms),
        lam=args.lam,
    )


def run(args: argparse.Namespace) -> Path:
    """What the command does; returns the model's path. Raises ModelError, and what `plan.build` does with --engine."""
    started = time.monotonic()
    batches = [int(b) if b.isdecimal() else 0 for b in args.batch.split(",")]
    targets = args.target.split(",") if args.target else None
    if args.engine:  # before minutes of work, and not after them
        check_options(args.flavour, batches, targets)
    if args.random_adm:
        model, sha256 = checkpoint.random_adm(args.channels), ""
        width = "" if args.channels == 256 else f"-{args.channels}ch"
        name, training_data = args.name or f"adm256{width}-random-weights", "none: random weights"
        if "random" not in name:
            name += "-random-weights"  # whatever it is called, nobody should mistake it for the model
    else:
        fields = checkpoint.Flags.__dataclass_fields__
        flags = checkpoint.Flags(**{field: getattr(args, field) for field in fields})
        model, sha256 = checkpoint.load(args.checkpoint, flags)
        name, training_data = args.name or default_name(args.checkpoint), args.training_data
    read = time.monotonic()
    output: Path = args.output
    path = output / (f"{name}.onnx" if args.precision == "fp32" else f"{name}-{args.precision}.onnx")
    plan = path.with_suffix(".plan")
    if args.engine and plan.exists() and not args.overwrite:
        raise InputError(f"{plan}: is there already; give another --name, or --overwrite")
    spec = spec_for(model, args, name, sha256, training_data)
    store = "fp16" if args.store_fp16 else "same"
    report = export_onnx(model, spec, path, args.precision, opset=args.opset, store=store, norm=args.norm)
    done = time.monotonic()

    files = [f for f in (path, path.with_name(path.name + ".data"), sidecar_path(path)) if f.exists()]
    sides = f"{spec.min_side} to {spec.max_side} by {spec.multiple}" if spec.flexible else f"{spec.canvas} only"
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
        built = build(path, plan, flavour=args.flavour, batches=batches, targets=targets)["plan"]
        took = time.monotonic() - done
        print(f"  {plan} {plan.stat().st_size / 1e6:,.2f} MB for {', '.join(built['targets'])} by {built['flavour']} "
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
    except (ZipError, OSError) as e:
        print(f"python -m export: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
