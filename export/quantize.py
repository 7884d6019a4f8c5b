r"""Quantize an exported float32 model to 8-bit convolutions, for CPUs.

    python -m export.quantize zipsdk/models/zip-tiny.onnx -o zipsdk/models \
        --data cifar10-train.zip gtsrb-train.zip imagenette-train.zip

This is static quantization by ONNX Runtime's own tools (Jacob et al. 2018, arXiv 1712.05877): activations have 8 bits
and one scale per tensor, weights one scale per channel. Scales are measured on the states x_t of the loop, at the steps
of both presets. Normalization, time embedding, the products of attention, the first and the last convolution stay
float32, and so does each convolution that alone changes the estimated image too much.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    TensorsData,
    create_calibrator,
)

from zipsdk.engines.onnxruntime import OnnxEngine
from zipsdk.errors import InputError, ModelError, ZipSdkError
from zipsdk.images.sources import read_sample
from zipsdk.models.sidecar import check_sidecar, sidecar_path, write_sidecar
from zipsdk.models.spec import INT8, METADATA_KEY, ModelSpec
from zipsdk.presets import PresetName
from zipsdk.purifier import Purifier
from zipsdk.types import Engine

from .to_onnx import check_temporary_folder

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
State = tuple[F32, F32]

#: A scale covers this percentage of the values. The largest value of a million is several times as large; a scale that
#: covered it would round all others more coarsely.
PERCENTILE = 99.98
#: Largest change of the estimated image, in gray levels (root mean square), by one 8-bit convolution; those above stay
#: float32. Four of zip-tiny's 49 are above, all in the last blocks at full size; the fifth is at half of it.
ALONE = 0.5
#: Largest change by the whole model: five times zip-tiny's.
TOGETHER = 3.0
#: Smallest alpha-bar at which the change is measured; below it, the guidance decides the image, not the model.
LEAST_SIGNAL = 0.5
_SEED = 1


def quantize(source: str | Path, target: str | Path, images: list[U8]) -> dict[str, Any]:
    """Write the 8-bit model and its sidecar. The same model and images give the same file.

    Args:
        source: a model of precision "fp32" that `export.to_onnx` wrote.
        target: an ``.onnx`` file; its stem becomes the model's name.
        images: uint8 (H, W, 3), a few dozen training images to measure scales on.

    Returns:
        The sidecar's "export" entry: which convolutions stayed float32, and the change of the estimated image in gray
        levels (root mean square), by step, for alpha-bar of at least `LEAST_SIGNAL`.

    Raises:
        ModelError: the model is not float32, or 8 bits change it too much. Files already at `target` are left as they
            were.
        InputError: no images.
    """
    source, target = Path(source), Path(target)
    engine = OnnxEngine(source, device="cpu")
    if engine.spec.precision != "fp32":
        raise ModelError(f"{source}: got precision {engine.spec.precision}, expected fp32; export it with that")
    if not images:
        raise InputError("images: got none, expected a few dozen to measure scales on; add training images")
    model = plain(onnx.load(str(source)))
    convolutions = [n.name for n in model.graph.node if n.op_type == "Conv"]
    states = loop_states(engine, images)
    probes = [(x[:2], t[:2]) for x, t in states if signal(engine.spec, t[0]) >= LEAST_SIGNAL]
    expected = [engine(*state) for state in probes]
    scales = measure(model, states)
    alone = {
        node: max(change(build(model, scales, [node]), engine.spec, probes, expected).values())
        for node in convolutions[1:-1]
    }
    chosen = [node for node in alone if alone[node] <= ALONE]
    quantized = build(model, scales, chosen)
    together = change(quantized, engine.spec, probes, expected)
    if not chosen or not max(together.values()) <= TOGETHER:
        raise ModelError(
            f"{source}: got a change of the estimated image by {together} gray levels, by t, with {len(chosen)} of "
            f"{len(convolutions)} convolutions in 8 bits, expected at most {TOGETHER:g}; nothing was written. Use fp32"
        )
    del quantized.metadata_props[:]
    spec = replace(engine.spec, name=target.stem, precision=INT8)
    onnx.helper.set_model_props(quantized, {METADATA_KEY: spec.to_json()})
    report = {
        "precision": INT8,
        "parameters": ((check_sidecar(source) or {}).get("export", {})).get("parameters"),
        "quantized": len(chosen),
        "float": [node for node in convolutions if node not in chosen],
        "alone": dict(sorted(alone.items(), key=lambda item: -item[1])[:8]),
        "parity": {"runtime": f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider", "reference": source.name,
                   "gray_levels": together, "tolerance": TOGETHER},
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        file = Path(folder) / target.name
        onnx.checker.check_model(quantized)
        file.write_bytes(quantized.SerializeToString(deterministic=True))
        write_sidecar(file, {"export": report})
        # The sidecar goes last, as in `export.to_onnx`.
        file.replace(target)
        sidecar_path(file).replace(sidecar_path(target))
    return report


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert float16 weights with a Cast (`export.to_onnx`) to float32, in place; the tools do not read a Cast."""
    graph = model.graph
    stored = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    for node in [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]:
        weight = stored[node.input[0]]
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32),
                                                         node.output[0]))  # fmt: skip
        graph.initializer.remove(weight)
        graph.node.remove(node)
    return model


class _Recorder:
    """Wrap an engine and keep the states on which it is called."""

    def __init__(self, engine: Engine):
        self.engine, self.spec = engine, engine.spec
        self.states: list[State] = []

    def __call__(self, x: F32, t: F32) -> F32:
        self.states.append((x.copy(), t.copy()))  # the loop overwrites them
        return self.engine(x, t)


def loop_states(engine: Engine, images: list[U8]) -> list[State]:
    """Return (x_t, t) of every step of every preset.

    Half of the images are purified with the spec's transforms, half with a stronger blur.
    """
    recorder = _Recorder(engine)
    for part, transforms in ((images[::2], None), (images[1::2], "blur4")):
        for preset in get_args(PresetName):
            Purifier(recorder, transforms, preset=preset, seed=_SEED).run(part)
    return recorder.states


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Give the calibrator one state."""

    def __init__(self, spec: ModelSpec, state: State):
        self.feeds = iter([{spec.input_x: state[0], spec.input_t: state[1]}])

    def get_next(self) -> dict[str, F32] | None:
        return next(self.feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the tools print and log; their errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def measure(model: onnx.ModelProto, states: list[State]) -> TensorsData:
    """Measure the range of each convolution's input and output over the states, without the largest values."""
    spec = ModelSpec.from_json({p.key: p.value for p in model.metadata_props}[METADATA_KEY], "the model")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "model.onnx"
        onnx.save(model, str(file))
        calibrator = create_calibrator(
            file, ["Conv"], str(Path(folder) / "augmented.onnx"), CalibrationMethod.Percentile,
            extra_options={"percentile": PERCENTILE, "symmetric": False},
        )  # fmt: skip
        for state in states:  # one by one: the calibrator keeps all values of a call in memory
            calibrator.collect_data(_Reader(spec, state))
            calibrator.clear_collected_data()
        return calibrator.compute_data()


def build(model: onnx.ModelProto, scales: TensorsData, nodes: list[str]) -> onnx.ModelProto:
    """Return a copy of the model in which these convolutions have 8 bits."""
    with _quiet():
        # Weights have 7 bits: processors without VNNI add two products in 16 bits, which 8 bits overflow.
        tool = QDQQuantizer(
            copy.deepcopy(model), per_channel=True, reduce_range=True, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8, tensors_range=scales, nodes_to_quantize=nodes, nodes_to_exclude=[],
            op_types_to_quantize=["Conv"], extra_options={},
        )  # fmt: skip
        if nodes:  # an empty list means "all" to the tool
            tool.quantize_model()
            tool.model.topological_sort()
        quantized: onnx.ModelProto = tool.model.model
    return quantized


def signal(spec: ModelSpec, t: float) -> float:
    """Return alpha-bar at step t."""
    return float(spec.alphas_cumprod()[int(t)])


def change(model: onnx.ModelProto, spec: ModelSpec, probes: list[State], expected: list[F32]) -> dict[str, float]:
    """Measure how much a model changes the estimated image.

    The estimate is x_0 = (x_t - sqrt(1 - ab) eps) / sqrt(ab) (Song et al. 2021, equation 9).

    Args:
        model: the changed model.
        spec: its schedule and the names of its tensors.
        probes: states (x_t, t), one t each.
        expected: eps of the original model for each of them.

    Returns:
        The change in gray levels (root mean square), by t.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    squares: dict[str, list[float]] = {}
    for (x, t), eps in zip(probes, expected, strict=True):
        ab = signal(spec, t[0])
        got = session.run([spec.output], {spec.input_x: x, spec.input_t: t})[0]
        square = float(np.mean((got - eps) ** 2, dtype=np.float64))
        squares.setdefault(f"{t[0]:g}", []).append(127.5**2 * (1 - ab) / ab * square)
    return {t: float(np.sqrt(np.mean(values))) for t, values in squares.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    p = argparse.ArgumentParser(prog=f"python -m {__package__}.quantize",
                                description="Quantize an exported float32 model to 8-bit convolutions.")  # fmt: skip
    p.add_argument("model", type=Path, metavar="MODEL.onnx", help="fp32 model that zipsdk export wrote")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument("--name", help="name of the model and its file; default: the model's with -int8")
    p.add_argument("--data", nargs="+", type=Path, required=True, help="zip files or folders of training images")
    p.add_argument("--limit", type=int, default=10, help="images from each; default: %(default)s")
    args = p.parse_args(argv)
    target = args.output / f"{args.name or args.model.stem + '-int8'}.onnx"
    try:
        check_temporary_folder()
        side = OnnxEngine(args.model, device="cpu").spec.image_size
        report = quantize(args.model, target, [x for d in args.data for x in read_sample(d, args.limit, side)])
    except (ZipSdkError, OSError) as e:
        print(f"{p.prog}: {e}", file=sys.stderr)
        return 1
    worst = max(report["parity"]["gray_levels"].values())
    print(f"{target}: {target.stat().st_size / 1e6:,.2f} MB; {report['quantized']} convolutions of 8 bits and "
          f"{len(report['float'])} of float32; the image changes by {worst:.2f} gray levels")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
