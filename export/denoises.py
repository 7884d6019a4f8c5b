"""Check that a model denoises, knowing nothing of how its checkpoint was read.

A wrong number of heads, prediction type, schedule or range of pixels gives a network whose graph is exported faithfully
and computes nonsense. Noised images show it: what the model estimates of them must be better than what a formula does
that sees no image, best when the model is told the noise that there is, and best in the reading that was chosen.
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

from export.checkpoints import load
from export.flags import Flags
from export.leaves import leaves
from export.unet import UNet, UNetConfig
from zipsdk.errors import InputError, ModelError
from zipsdk.images.sources import decode, read_files
from zipsdk.models.spec import ModelSpec

Array = NDArray[np.float32]
#: (x_t, t) -> eps, float32 (N, 3, S, S) and float32 (N,).
Predict = Callable[[Array, Array], Array]

#: alpha-bar at which images are noised. Drawn images stop where a model of faces would begin to see faces in them.
LEVELS = (0.9, 0.7, 0.5, 0.3)
DRAWN_LEVELS = (0.9, 0.7, 0.5)
#: The mean squared error of x0 may be at most this share of the best linear estimate's, at each level.
LARGEST_SHARE = 0.8
#: Told of more or less noise than there is, by this much in log signal-to-noise ratio, the model may not be better than
#: told the truth by more than this factor.
SHIFT, LARGEST_GAIN = 1.0, 1.1
#: Nor may another number of heads or order of attention be better by more than this factor, at the last drawn level.
LARGEST_OTHER_GAIN = 1.05
_PIXELS = 8 * 64 * 64


def check(
    predict: Predict, spec: ModelSpec, images: NDArray[np.float64] | None = None,
    others: Iterable[tuple[str, Predict]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Check that the model denoises.

    The best linear estimate of x0, from x_t and the variance of the image around its mean color, has the error
    var * n / (var + n) with n = (1 - ab) / ab. Estimates of the model are x0 = (x_t - sqrt(1-ab) eps) / sqrt(ab) (Song
    et al. 2021, equation 9).

    Args:
        images: float (N, 3, S, S) RGB in [-1, 1], like those that it was trained on; default: drawn ones.
        others: names and models of other readings of the same checkpoint.

    Returns:
        The sidecar's record: for each level of alpha-bar the step, the share of the linear estimate's error, and the
        gain of being told of other noise; and the gain of each other reading.

    Raises:
        ModelError: it does not denoise.
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

        def error(told: int, predict: Predict = predict, x_t: Array = x_t, ab: float = ab) -> float:
            eps = predict(x_t, np.full(len(x_t), told, np.float32)).astype(np.float64)
            return float(np.mean(((x_t - np.sqrt(1 - ab) * eps) / np.sqrt(ab) - x0) ** 2))

        noise = (1 - ab) / ab
        right = error(t)
        shifted = min(error(_nearest(snr, snr[t] + shift)) for shift in (-SHIFT, SHIFT))
        share, gain = right / float(np.mean(variance * noise / (variance + noise))), right / shifted
        record["levels"][f"{ab:.3g}"] = {"t": t, "share": share, "gain": gain}
        if level == DRAWN_LEVELS[-1]:
            record["others"] = {name: right / error(t, other) for name, other in others}
    found = record["levels"].values()
    if not all(level["share"] <= LARGEST_SHARE and level["gain"] <= LARGEST_GAIN for level in found):
        numbers = ", ".join(f"{level['share']:.2f} and {level['gain']:.2f} at t = {level['t']}" for level in found)
        raise ModelError(
            "this does not denoise: check the heads, the schedule, the prediction type, the attention order. Error "
            f"relative to the best linear estimate, and to being told of other noise: got {numbers}; expected at most "
            f"{LARGEST_SHARE:g} and {LARGEST_GAIN:g}. Give --images like those it was trained on, or "
            "--no-denoise-check where you know better; nothing was written"
        )
    if better := [name for name, gain in record["others"].items() if gain > LARGEST_OTHER_GAIN]:
        best = max(better, key=lambda name: float(record["others"][name]))
        raise ModelError(
            f"this denoises {record['others'][best]:.2f} times better with {best}: check the heads, the attention "
            "order and the norm groups, or give --no-denoise-check where you know better; nothing was written"
        )
    return record


def other_readings(path: Path, flags: Flags, config: UNetConfig) -> Iterator[tuple[str, Predict]]:
    """Read a guided-diffusion checkpoint with what no shape tells changed: heads, attention order, norm groups.

    Args:
        path, flags: those that gave the model.
        config: the model's.
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
        except ModelError:  # it tells its heads, or they or the groups do not divide its channels
            continue
        heads = tuple(map(model.config.heads, widths))
        if heads not in seen or "heads" not in changes:
            seen.add(heads)
            yield name, of_torch(model)


def _nearest(values: NDArray[np.float64], wanted: float) -> int:
    return int(np.argmin(np.abs(values - wanted)))


def count(spec: ModelSpec) -> int:
    """Return how many images to use: 8 of 64x64, 1 at least."""
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
        raise InputError(f"{source}: got no image in it, expected at least one to noise and denoise")
    wanted, side = count(spec), spec.image_size
    images = []
    for data in files[:: max(1, len(files) // wanted)][:wanted]:
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
