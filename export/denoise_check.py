"""Check that a model denoises, without any knowledge of how its checkpoint was read.

A wrong number of heads, prediction type, schedule or value range gives a network that exports faithfully and computes
nonsense. The check noises images and estimates them back. The model must do better than the best linear estimate, which
is a formula that knows only the image's variance; it must do best when given the true noise level; and no other reading
of the same checkpoint may do better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zipsdk.errors import InputError, ModelError
from zipsdk.images.sources import decode, read_files
from zipsdk.models.spec import ModelSpec

from .checkpoints import load
from .dead_leaves import leaves
from .flags import Flags
from .unet import UNet, UNetConfig

Array = NDArray[np.float32]
#: (x_t, t) -> eps, float32 (N, 3, S, S) and float32 (N,).
Predict = Callable[[Array, Array], Array]

#: Values of alpha-bar at which images are noised. Drawn images are not tested at 0.3, where a model of faces would
#: put faces into them.
LEVELS = (0.9, 0.7, 0.5, 0.3)
DRAWN_LEVELS = (0.9, 0.7, 0.5)
#: Largest mean squared error of x0 at each level, relative to the best linear estimate's.
LARGEST_SHARE = 0.8
#: A wrong noise level, off by `SHIFT` in log signal-to-noise ratio, may reduce the error at most by this factor.
SHIFT, LARGEST_GAIN = 1.0, 1.1
#: Another reading of the checkpoint may reduce the error at most by this factor, at the last level of drawn images.
LARGEST_OTHER_GAIN = 1.05
_PIXELS = 8 * 64 * 64


def check(
    predict: Predict, spec: ModelSpec, images: NDArray[np.float64] | None = None,
    others: Iterable[tuple[str, Predict]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Check that the model denoises.

    The best linear estimate of x0, from x_t and the variance of the image around its mean color, has the error
    var * n / (var + n) with n = (1 - ab) / ab. The model's estimate is x0 = (x_t - sqrt(1 - ab) eps) / sqrt(ab) (Song
    et al. 2021, equation 9).

    Args:
        predict: the model.
        spec: its image size and its schedule.
        images: float (N, 3, S, S) RGB in [-1, 1], like the training images; default: drawn ones.
        others: names and models of other readings of the same checkpoint.

    Returns:
        The sidecar's record. For each level of alpha-bar: the step, the share of the linear estimate's error, and the
        gain from a wrong noise level (right error / wrong error). For each other reading: its gain.

    Raises:
        ModelError: the model does not denoise, or another reading is better.
    """
    levels = DRAWN_LEVELS if images is None else LEVELS
    record: dict[str, Any] = {
        "images": "drawn" if images is None else len(images), "largest_share": LARGEST_SHARE,
        "largest_gain": LARGEST_GAIN, "largest_other_gain": LARGEST_OTHER_GAIN, "levels": {}, "others": {},
    }  # fmt: skip
    x0 = leaves(count(spec), spec.image_size) if images is None else images
    ab_all, rng = spec.alphas_cumprod(), np.random.default_rng(0)
    snr = np.log(ab_all / (1 - ab_all))
    variance = (x0 - x0.mean((2, 3), keepdims=True)).var((1, 2, 3))
    for level in levels:
        t = _nearest(snr, np.log(level / (1 - level)))
        ab = float(ab_all[t])
        x_t = (np.sqrt(ab) * x0 + np.sqrt(1 - ab) * rng.standard_normal(x0.shape)).astype(np.float32)
        right = _error(predict, x_t, x0, t, ab)
        wrong = min(_error(predict, x_t, x0, _nearest(snr, snr[t] + shift), ab) for shift in (-SHIFT, SHIFT))
        noise = (1 - ab) / ab
        share = right / float(np.mean(variance * noise / (variance + noise)))
        record["levels"][f"{ab:.3g}"] = {"t": t, "share": share, "gain": right / wrong}
        if level == DRAWN_LEVELS[-1]:
            record["others"] = {name: right / _error(other, x_t, x0, t, ab) for name, other in others}
    _refuse_bad(record)
    return record


def _error(predict: Predict, x_t: Array, x0: NDArray[np.float64], t: int, ab: float) -> float:
    """Return the mean squared error of x0, estimated from x_t as if its step were t; `ab` is the true alpha-bar."""
    eps = predict(x_t, np.full(len(x_t), t, np.float32)).astype(np.float64)
    return float(np.mean(((x_t - np.sqrt(1 - ab) * eps) / np.sqrt(ab) - x0) ** 2))


def _refuse_bad(record: dict[str, Any]) -> None:
    levels = record["levels"].values()
    if not all(level["share"] <= LARGEST_SHARE and level["gain"] <= LARGEST_GAIN for level in levels):
        shares = ", ".join(f"{level['share']:.2f} at t = {level['t']}" for level in levels)
        gains = ", ".join(f"{level['gain']:.2f} at t = {level['t']}" for level in levels)
        raise ModelError(
            f"the model does not denoise: got an error of {shares}, relative to the best linear estimate, expected at "
            f"most {LARGEST_SHARE:g}; and of {gains}, relative to a wrong noise level, expected at most "
            f"{LARGEST_GAIN:g}. Nothing was written. Check the heads, the schedule, the prediction type and the "
            "attention order; give --images like the training images; or skip the check with --no-denoise-check"
        )
    if better := [name for name, gain in record["others"].items() if gain > LARGEST_OTHER_GAIN]:
        best = max(better, key=lambda name: float(record["others"][name]))
        raise ModelError(
            f"another reading is better: got an error {record['others'][best]:.2f} times that with {best}, expected at "
            f"most {LARGEST_OTHER_GAIN:g}. Nothing was written. Check the heads, the attention order and the norm "
            "groups, or skip the check with --no-denoise-check"
        )


def other_readings(path: Path, flags: Flags, config: UNetConfig) -> Iterator[tuple[str, Predict]]:
    """Load a guided-diffusion checkpoint with other heads, attention orders and norm groups, which no shape determines.

    Args:
        path: the checkpoint.
        flags: the flags with which the model was loaded.
        config: the model's configuration.

    Yields:
        The flag that was changed, and the model.
    """
    widths = config.attention_widths
    seen = {tuple(map(config.heads, widths))}
    order = "new" if flags.attention_order in (None, "legacy") else "legacy"
    settings: list[tuple[str, dict[str, Any]]] = [(f"--attention-order {order}", {"attention_order": order})]
    settings += [(f"--heads {n}", {"heads": n, "head_channels": None}) for n in (1, 4, 8)]
    settings += [(f"--head-channels {n}", {"heads": None, "head_channels": n}) for n in (32, 64, 128)]
    settings += [(f"--norm-groups {n}", {"norm_groups": n}) for n in (8, 16, 32) if n != config.norm_groups]
    for name, changes in settings:
        try:
            model, _ = load(path, replace(flags, **changes))
        except ModelError:  # the checkpoint fixes the value, or its channels cannot be divided so
            continue
        heads = tuple(map(model.config.heads, widths))
        if heads not in seen or "heads" not in changes:
            seen.add(heads)
            yield name, of_torch(model)


def _nearest(values: NDArray[np.float64], value: float) -> int:
    return int(np.argmin(np.abs(values - value)))


def count(spec: ModelSpec) -> int:
    """Return the number of images to use: as many pixels as 8 images of 64x64 have, but 1 to 16 images."""
    return int(max(1, min(16, _PIXELS // spec.image_size**2)))


def load_images(source: Path, spec: ModelSpec) -> NDArray[np.float64]:
    """Read images spread evenly over a folder or zip file, cut to the middle square and scaled to the image size.

    Returns:
        float64 (N, 3, S, S) RGB in [-1, 1].

    Raises:
        InputError: there are none.
    """
    files = list(read_files(source))
    if not files:
        raise InputError(f"{source}: got no image in it, expected at least one to noise and denoise; check the path")
    n, side = count(spec), spec.image_size
    images = []
    for data in files[:: max(1, len(files) // n)][:n]:
        image = Image.fromarray(decode(data))
        least = min(image.size)
        left, top = (image.width - least) // 2, (image.height - least) // 2
        box = (left, top, left + least, top + least)
        images.append(np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box=box)))
    return np.stack(images).transpose(0, 3, 1, 2) / 127.5 - 1


def of_torch(model: UNet) -> Predict:
    """Return the model as a function of NumPy arrays."""

    def predict(x: Array, t: Array) -> Array:
        with torch.inference_mode():
            eps: Array = model(torch.from_numpy(x), torch.from_numpy(t)).numpy()
        return eps

    return predict
