"""Compare an exported model with the torch model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from zipsdk.errors import ModelError
from zipsdk.models.spec import ModelSpec

from .unet import UNet

Array = NDArray[np.float32]
Run = Callable[[Array, Array], Array]

#: Largest relative error of the prediction, by (precision, store). Sound models stay below a fifth of it (a trained
#: v model of 2.5 M parameters: 3e-5, 5e-4, 7e-4, 2e-2; random weights of 553 M: 2e-5 in fp32, 9e-4 in fp16); wrong
#: graphs are off by a tenth or more.
TOLERANCE = {("fp32", "same"): 1e-4, ("fp32", "fp16"): 5e-3, ("fp16", "same"): 2e-2, ("bf16", "same"): 1e-1}


def probes(model: UNet, spec: ModelSpec) -> Iterator[tuple[Array, Array]]:
    """Draw noised images: t = 950 and 500 in one batch, t = 0 at another height if the model takes several.

    Yields:
        x_t float32 (N, 3, H, W) and t float32 (N,).
    """
    rng = np.random.default_rng(0)
    last = spec.timesteps - 1
    other = spec.image_size
    if spec.flexible:
        other = spec.min_side if spec.min_side < spec.image_size else spec.image_size + spec.multiple
    for steps, height in (((950, 500), spec.image_size), ((0,), other)):
        t = np.array([s * (last + 1) // 1000 for s in steps])
        shape = (len(t), 3, height, spec.image_size)
        coarse = rng.uniform(-1, 1, (len(t), 3, 4, 4))
        rows, columns = (np.arange(n) * 4 // n for n in shape[2:])
        ab = model.alphas_cumprod.numpy()[t][:, None, None, None].astype(np.float64)
        x = np.sqrt(ab) * coarse[:, :, rows][..., columns] + np.sqrt(1 - ab) * rng.standard_normal(shape)
        yield x.astype(np.float32), t.astype(np.float32)


def open_onnx(file: Path, spec: ModelSpec) -> Run:
    """Return an ONNX file as a function of NumPy arrays, run by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(x: Array, t: Array) -> Array:
        out: Array = session.run([spec.output], {spec.input_x: x, spec.input_t: t})[0]
        return out

    return run


def compare(run: Run, cases: list[tuple[Array, Array, Array]], model: UNet, tolerance: float) -> dict[str, Any]:
    """Compare what the network predicts with what the torch model predicts, at each t.

    The prediction of a v or x0 model is solved for from epsilon. Epsilon itself would hide errors: at t = 950 it is the
    input but for one part in a hundred.

    Args:
        run: the exported model.
        cases: x_t, t and the torch model's epsilon.
        model: only its schedule and its prediction type matter.
        tolerance: largest relative error allowed.

    Returns:
        The sidecar's entry: relative error ||a - b|| / ||b|| by t, and the tolerance.

    Raises:
        ModelError: an error is larger, or the exported model returns NaN or infinity.
    """
    errors: dict[str, float] = {}
    alpha_bar = model.config.alphas_cumprod()
    for x, t, expected in cases:
        got = run(x, t)
        for i, step in enumerate(t):
            if bad := int(np.count_nonzero(~np.isfinite(got[i]))):
                raise ModelError(
                    f"exported model: got {bad} NaN or infinite values at t = {step:g}, expected none; nothing was "
                    "written. The range of fp16 is too small for some models: use bf16 or fp32"
                )
            ab = float(alpha_bar[int(step)])
            a, b = (_prediction(eps[i].astype(np.float64), x[i], ab, model) for eps in (got, expected))
            errors[f"{step:g}"] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not max(errors.values()) <= tolerance:
        raise ModelError(
            f"the exported model does not agree with the torch model: got relative errors {errors} by t, expected at "
            f"most {tolerance:g}; nothing was written. Try --precision fp32, or report it with the checkpoint's name"
        )
    return {"relative_error": errors, "tolerance": tolerance}


def _prediction(eps: NDArray[np.float64], x: Array, ab: float, model: UNet) -> NDArray[np.float64]:
    match model.config.prediction:
        case "v":
            return (eps - math.sqrt(1 - ab) * x) / math.sqrt(ab)
        case "sample":
            return (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
    return eps
