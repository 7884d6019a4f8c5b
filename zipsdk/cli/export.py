"""The command ``zipsdk export``: convert a checkpoint into an ONNX model and, if asked, a TensorRT plan."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from zipsdk._util.runtimes import load
from zipsdk.cli.args import EXIT_CODES, add_command, add_plan_options, path_text, positive_int, thread_count
from zipsdk.errors import InputError, MissingDependencyError
from zipsdk.models.noise_schedule import SCHEDULES
from zipsdk.models.spec import PRECISIONS

#: As in the exporter, which needs torch; a test compares them.
NORMS = ("group", "instance")
PREDICTIONS = ("epsilon", "v", "sample")

_EPILOG = (
    """\
The command needs torch: pip install 'zipsdk[export]'

input
  256x256_diffusion_uncond.pt   OpenAI's guided-diffusion and improved-diffusion checkpoints, without classes. Shapes
                                give most of the architecture, flags the rest. OpenAI's 256x256 model needs no flags.
  a folder or .safetensors      diffusers' UNet2DModel of the DDPM kind: a pipeline's folder, its unet folder, or the
                                weights with config.json beside them. scheduler_config.json gives the noise process.
  celeba_hq.ckpt                Ho et al.'s layout, as in DDRM, DDNM and ermongroup/ddim.
  ema.safetensors               written by the training: python -m zipsdk.export.train
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
  zipsdk export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 \\
      --license "MIT (code); model card: research use" --training-data "ILSVRC 2012"
  zipsdk export ddpm-cifar10-32/ -o models
  zipsdk export my-pipeline/ -o models --images photos/     # checked on images like the training images
  zipsdk export ema_0.9999_500000.pt -o models --image-size 32 --heads 4 --noise-schedule cosine --timesteps 4000
  zipsdk export celeba_hq.ckpt -o models
  zipsdk export runs/zip-tiny/ema.safetensors -o models --name zip-tiny --store-fp16 --norm instance
  zipsdk export 256x256_diffusion_uncond.pt -o models --name adm256 --precision fp16 --engine   # and a plan
  zipsdk export --random-adm -o models --precision fp16     # the 256x256 architecture, for timing

"""
    + EXIT_CODES
)


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    about = "convert the checkpoint of a diffusion UNet into an ONNX model"
    p = add_command(commands, "export", about, _EPILOG, run)
    p.add_argument("checkpoint", nargs="?", type=_path, metavar="CHECKPOINT", help="file or folder; see below")
    p.add_argument("-o", "--out", required=True, type=_path, metavar="DIR", help="folder to write to")
    p.add_argument("--name", type=_name, help="name of the model and its file (default: the checkpoint's)")
    p.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="precision of the convolutions (default: fp32)"
    )
    p.add_argument("--store-fp16", action="store_true", help="fp32 arithmetic, weights stored as fp16: half the file")
    p.add_argument(
        "--norm", choices=NORMS, default="group", help="group normalization; instance is faster on a CPU "
        "(default: group)",
    )  # fmt: skip
    p.add_argument("--opset", type=positive_int, default=21, help="ONNX opset, 21 or later (default: 21)")
    p.add_argument("--threads", type=thread_count, default=0, metavar="N", help="CPU threads (default: all)")
    p.add_argument("--overwrite", action="store_true", help="replace DIR/NAME.onnx, and DIR/NAME.plan with --engine")
    _add_architecture(p.add_argument_group("architecture: values that guided-diffusion checkpoints do not hold"))
    _add_noise(p.add_argument_group("noise process (default: the checkpoint's, or linear, epsilon, 1000 steps)"))

    g = p.add_argument_group("check that the model denoises")
    g.add_argument("--images", type=_path, metavar="FOLDER|ZIP",
                   help="images like the training images (default: drawn ones)")  # fmt: skip
    g.add_argument("--no-denoise-check", action="store_true", help="skip the check; the sidecar records it")

    g = p.add_argument_group("metadata of the model")
    g.add_argument("--license", default="", help="license of the weights")
    g.add_argument("--training-data", default="", help="description of the training data")
    g.add_argument("--min-side", type=positive_int, metavar="N",
                   help="smallest side (default: the image size, or 32 without attention)")  # fmt: skip
    g.add_argument("--max-side", type=positive_int, metavar="N",
                   help="largest side (default: the image size, or 512 without attention)")  # fmt: skip
    g.add_argument(
        "--transforms", nargs="+", default=["blur2", "gray"], help="recommended transforms (default: blur2 gray)"
    )
    g.add_argument("--lam", type=float, default=10.0, help="recommended lambda (default: %(default)s)")

    g = p.add_argument_group("TensorRT (see zipsdk build --help)")
    g.add_argument("--engine", action="store_true", help="also compile DIR/NAME.plan")
    add_plan_options(g)


def _path(text: str) -> Path:
    return Path(path_text(text))


def _name(text: str) -> str:
    if Path(path_text(text)).name != text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name without folders; give folders by -o")
    return text


def _add_architecture(g: Any) -> None:
    g.add_argument("--image-size", type=positive_int, metavar="N",
                   help="side of the training images (default: by guided-diffusion's channel_mult)")  # fmt: skip
    heads = g.add_mutually_exclusive_group()
    heads.add_argument("--heads", type=positive_int, metavar="N", help="attention heads at every level (num_heads)")
    heads.add_argument("--head-channels", type=positive_int, metavar="N",
                       help="channels per attention head (num_head_channels)")  # fmt: skip
    g.add_argument("--norm-groups", type=positive_int, metavar="N", help="groups of the normalization (default: 32)")
    g.add_argument("--attention-order", choices=("legacy", "new"),
                   help="order of the rows of qkv (default: legacy, use_new_attention_order False)")  # fmt: skip
    g.add_argument("--rescale-timesteps", action="store_true",
                   help="the network takes 1000 t / T (improved-diffusion's default)")  # fmt: skip
    g.add_argument("--random-adm", action="store_true", help="no CHECKPOINT: OpenAI's 256x256 UNet, random weights")
    g.add_argument("--channels", type=positive_int, default=256, metavar="N",
                   help="width of --random-adm (default: %(default)s)")  # fmt: skip


def _add_noise(g: Any) -> None:
    g.add_argument(
        "--noise-schedule", choices=[name for name in SCHEDULES if name != "betas"], help="schedule of the betas"
    )
    g.add_argument("--prediction", choices=PREDICTIONS, help="prediction of the network; sample is x0 (predict_xstart)")
    g.add_argument("--timesteps", type=positive_int, metavar="T", help="number of noise levels in training")
    g.add_argument("--beta-start", type=float, help="first beta of a linear schedule (default: 0.0001, "
                   "times 1000 / T for guided-diffusion)")  # fmt: skip
    g.add_argument("--beta-end", type=float, help="last beta of a linear schedule (default: 0.02, likewise)")


def run(args: argparse.Namespace) -> int:
    """Export a model; return the exit code."""
    if (args.checkpoint is None) != args.random_adm:
        got = "CHECKPOINT and --random-adm" if args.random_adm else "neither CHECKPOINT nor --random-adm"
        raise InputError(f"zipsdk export: got {got}, expected one of them; give a CHECKPOINT or --random-adm")
    load_exporter().run(args)
    return 0


def load_exporter() -> Any:
    """Import the exporter: ``zipsdk.export`` of a wheel, or the folder ``export`` of a checkout.

    Raises:
        MissingDependencyError: a package of the extra "export" is missing.
    """
    load("torch")
    for package in ("zipsdk.export", "export"):
        try:
            return import_module(f"{package}.command")
        except ModuleNotFoundError as e:
            if e.name != package:
                raise MissingDependencyError(str(e.name), "export", str(e)) from e
    raise MissingDependencyError("zipsdk.export", "export", "this installation has no exporter")
