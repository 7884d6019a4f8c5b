"""Run ``zipsdk export``, whose options are in `zipsdk.cli.export`: a checkpoint to an ONNX file and a TensorRT plan."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from zipsdk.cli.console import print_output
from zipsdk.engines.tensorrt.build import build
from zipsdk.engines.tensorrt.request import BuildRequest
from zipsdk.errors import InputError
from zipsdk.models.sidecar import sidecar_path
from zipsdk.models.spec import ModelSpec
from zipsdk.transforms import parse

from . import checkpoints, denoise_check
from .flags import Flags, refuse
from .to_onnx import check_options, check_temporary_folder, data_path, export_onnx
from .unet import UNet


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
    parse("+".join(spec.transforms))  # refuse unknown names before the export
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
    most = record["largest_share"]
    print_output(f"  denoises: error {shares}, relative to the best linear estimate (at most {most:g})")
    return record


def model_name(args: argparse.Namespace) -> str:
    """Return the name of the model: ``--name``, or the checkpoint's; random weights are named as such."""
    if not args.random_adm:
        return str(args.name or default_name(args.checkpoint))
    width = "" if args.channels == 256 else f"-{args.channels}ch"
    name = str(args.name or f"adm256{width}-random-weights")
    return name if "random" in name else f"{name}-random-weights"  # never to be mistaken for the trained model


def load(args: argparse.Namespace, name: str) -> tuple[UNet, ModelSpec]:
    """Load the checkpoint, or build the random model, and describe it by a spec of that name.

    Raises:
        ModelError: as `export.checkpoints.load`.
    """
    flags = flags_of(args)
    if not args.random_adm:
        model, sha256 = checkpoints.load(args.checkpoint, flags, print_output)
        return model, spec_for(model, args, name, sha256, args.training_data)
    refuse(flags, Flags.__dataclass_fields__, Path("--random-adm"), "the published model")
    return (model := checkpoints.random_adm(args.channels)), spec_for(model, args, name, "", "none: random weights")


def refuse_existing(path: Path, plan: Path | None) -> None:
    """Refuse to replace a model.

    Raises:
        InputError: the model, its external data, its sidecar or the plan exists.
    """
    for file in (path, data_path(path), sidecar_path(path), plan):
        if file is not None and file.exists():
            raise InputError(f"{file}: got a file that exists, expected a new one; use another --name, or --overwrite")


def print_report(path: Path, spec: ModelSpec, report: dict[str, Any]) -> None:
    """Print the sizes and the comparison of an exported model, and its files."""
    sides = f"{spec.min_side} to {spec.max_side} by {spec.multiple}" if spec.flexible else f"{spec.image_size} only"
    parity = report["parity"]
    errors = ", ".join(f"{e:.1e} at t = {t}" for t, e in parity["relative_error"].items())
    print_output(f"{spec.name}: {report['parameters']:,} parameters in {report['tensors']} tensors; sides {sides}")
    print_output(f"  relative error {errors} (at most {parity['tolerance']:g}; {parity['runtime']})")
    for file in (path, data_path(path), sidecar_path(path)):
        if file.exists():
            print_output(f"  {file} {file.stat().st_size / 1e6:,.2f} MB")


def run(args: argparse.Namespace) -> Path:
    """Export a model as requested on the command line.

    Args:
        args: what the parser of `zipsdk.cli.export` returns.

    Returns:
        The path of the ONNX file.

    Raises:
        ModelError: the checkpoint cannot be read, or a check failed; nothing was written.
        InputError: a file of the model exists, there is no folder for temporary files, or as
            `zipsdk.engines.tensorrt.build`.
    """
    started = time.monotonic()
    if args.threads:
        torch.set_num_threads(args.threads)
    store = "fp16" if args.store_fp16 else "same"
    # check all that can be checked before minutes of work
    check_temporary_folder()
    check_options(args.precision, args.opset, store, args.norm)
    if args.engine:
        BuildRequest.from_options(args.flavor, args.batch, args.target)
    name = model_name(args)
    path: Path = args.out / (f"{name}.onnx" if args.precision == "fp32" else f"{name}-{args.precision}.onnx")
    plan = path.with_suffix(".plan")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out}: got a file, expected a folder for the model; give another one by -o")
    if not args.overwrite:
        refuse_existing(path, plan if args.engine else None)
    model, spec = load(args, name)
    loaded = time.monotonic()
    report = export_onnx(model, spec, path, args.precision, opset=args.opset, store=store, norm=args.norm,
                         denoises=check_denoising(args, model, spec))  # fmt: skip
    done = time.monotonic()
    print_report(path, spec, report)
    print_output(f"  {args.precision}{', weights stored as fp16' if args.store_fp16 else ''}, opset {args.opset}")
    print_output(f"  {loaded - started:.1f} s to load, {done - loaded:.1f} s to export and compare")
    if args.engine:
        print_output(f"  compiling {plan} ...")  # takes minutes for large models
        built = build(path, plan, flavor=args.flavor, batches=args.batch, targets=args.target)["plan"]
        took = time.monotonic() - done
        print_output(f"  {plan} {plan.stat().st_size / 1e6:,.2f} MB for {', '.join(built['targets'])} by "
                     f"{built['flavor']} {built['runtime']} in {took:.1f} s")  # fmt: skip
    return path
