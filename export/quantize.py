"""An exported float32 model -> the same with 8-bit convolutions, for CPUs.

    python -m export.quantize zipsdk/models/zip-tiny.onnx -o zipsdk/models \\
        --data cifar10-train.zip gtsrb-train.zip imagenette-train.zip

Static quantisation by ONNX Runtime's own tools (Jacob et al. 2018, arXiv 1712.05877): activations are 8-bit with one
scale a tensor, weights with one a channel. The scales are measured on what the model really sees, the states x_t of the
loop at the steps of both presets. Normalisation, time embedding, attention's products, the first and the last
convolution stay float32, and so does each convolution that alone moves the estimated picture too far.
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

from export.to_onnx import check_temporary_folder
from zipsdk.engines.onnxruntime import OnnxEngine
from zipsdk.errors import InputError, ModelError, ZipSdkError
from zipsdk.images.sources import read_sample
from zipsdk.models.sidecar import check_sidecar, sidecar_path, write_sidecar
from zipsdk.models.spec import INT8, METADATA_KEY, ModelSpec
from zipsdk.presets import PresetName
from zipsdk.purifier import Purifier
from zipsdk.types import Engine

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
State = tuple[F32, F32]

#: Beyond these percents of the values a scale is not stretched: the largest of a million is several times as large, and
#: a scale that reached it would round all the others more coarsely.
PERCENTILE = 99.98
#: Grey levels, root mean square, by which one 8-bit convolution may move the estimated picture; with more it stays
#: float32. Of zip-tiny's 49 four are above, all in the last blocks at full size, and the fifth is at half of it.
ALONE = 0.5
#: The same of the whole model: five times what zip-tiny does. More is a model that rounding does not suit.
TOGETHER = 3.0
#: With less of the noise gone than this, the guide decides what the estimated picture becomes, and not the model.
LEAST_SIGNAL = 0.5
_SEED = 1


def quantize(source: str | Path, target: str | Path, pictures: list[U8]) -> dict[str, Any]:
    """Write the 8-bit model and its sidecar. The same model and pictures give the same file.

    Args:
        source: a model of precision "fp32" that `export.to_onnx` wrote.
        target: an ``.onnx`` file; its stem becomes the model's name.
        pictures: uint8 (H, W, 3), to measure scales on: a few dozen, from training data.

    Returns:
        The sidecar's "export" entry: which convolutions stayed float32, and by how many grey levels (root mean square)
        the estimated picture moves at each step where at least half is signal.

    Raises:
        ModelError: the model is not float32, or 8 bits do not suit it; nothing is left under `target` then but what lay
            there before.
        InputError: no pictures.
    """
    source, target = Path(source), Path(target)
    engine = OnnxEngine(source, device="cpu")
    if engine.spec.precision != "fp32":
        raise ModelError(f"{source}: got precision {engine.spec.precision}, wanted fp32; export it with that")
    if not pictures:
        raise InputError("pictures: got none, wanted a few dozen to measure scales on")
    model = plain(onnx.load(str(source)))
    convolutions = [n.name for n in model.graph.node if n.op_type == "Conv"]
    states = loop_states(engine, pictures)
    probes = [(x[:2], t[:2]) for x, t in states if signal(engine.spec, t[0]) >= LEAST_SIGNAL]
    wanted = [engine(*state) for state in probes]
    scales = measure(model, states)
    moves = {
        node: max(moved(build(model, scales, [node]), engine.spec, probes, wanted).values())
        for node in convolutions[1:-1]
    }
    chosen = [node for node in moves if moves[node] <= ALONE]
    quantized = build(model, scales, chosen)
    together = moved(quantized, engine.spec, probes, wanted)
    if not chosen or not max(together.values()) <= TOGETHER:
        raise ModelError(
            f"{source}: 8 bits move the estimated picture by {together} grey levels, by t, with {len(chosen)} of "
            f"{len(convolutions)} convolutions; wanted at most {TOGETHER:g}; nothing was written. Use fp32"
        )
    del quantized.metadata_props[:]
    spec = replace(engine.spec, name=target.stem, precision=INT8)
    onnx.helper.set_model_props(quantized, {METADATA_KEY: spec.to_json()})
    report = {
        "precision": INT8,
        "parameters": ((check_sidecar(source) or {}).get("export", {})).get("parameters"),
        "quantized": len(chosen),
        "float": [node for node in convolutions if node not in chosen],
        "alone": dict(sorted(moves.items(), key=lambda item: -item[1])[:8]),
        "parity": {"got": f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider", "wanted": source.name,
                   "grey_levels": together, "tolerance": TOGETHER},
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        file = Path(folder) / target.name
        onnx.checker.check_model(quantized)
        file.write_bytes(quantized.SerializeToString(deterministic=True))
        write_sidecar(file, {"export": report})
        # the sidecar last, as in `export.to_onnx`
        file.replace(target)
        sidecar_path(file).replace(sidecar_path(target))
    return report


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn float16 weights, which `export.to_onnx` may store, back into float32 in place; the tools ignore a Cast."""
    graph = model.graph
    stored = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    for node in [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]:
        weight = stored[node.input[0]]
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32),
                                                         node.output[0]))  # fmt: skip
        graph.initializer.remove(weight)
        graph.node.remove(node)
    return model


class _Spy:
    """An engine that keeps what it is asked."""

    def __init__(self, engine: Engine):
        self.engine, self.spec = engine, engine.spec
        self.states: list[State] = []

    def __call__(self, x: F32, t: F32) -> F32:
        self.states.append((x.copy(), t.copy()))  # the loop goes on in place
        return self.engine(x, t)


def loop_states(engine: Engine, pictures: list[U8]) -> list[State]:
    """(x_t, t) of every evaluation of every preset; half of the pictures behind the spec's transforms, half behind a
    stronger blur."""
    spy = _Spy(engine)
    for part, transforms in ((pictures[::2], None), (pictures[1::2], "blur4")):
        for preset in get_args(PresetName):
            Purifier(spy, transforms, preset=preset, seed=_SEED).run(part)
    return spy.states


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, spec: ModelSpec, state: State):
        self.feeds = iter([{spec.input_x: state[0], spec.input_t: state[1]}])

    def get_next(self) -> dict[str, F32] | None:
        return next(self.feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the tools print, and their advice to fold batch normalisation; their errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def measure(model: onnx.ModelProto, states: list[State]) -> TensorsData:
    """The range of each convolution's input and output over the states, without the farthest values."""
    spec = ModelSpec.from_json({p.key: p.value for p in model.metadata_props}[METADATA_KEY], "the model")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "model.onnx"
        onnx.save(model, str(file))
        calibrator = create_calibrator(
            file, ["Conv"], str(Path(folder) / "augmented.onnx"), CalibrationMethod.Percentile,
            extra_options={"percentile": PERCENTILE, "symmetric": False},
        )  # fmt: skip
        for state in states:  # one by one: the calibrator keeps all values of what it is given at once
            calibrator.collect_data(_Reader(spec, state))
            calibrator.clear_collected_data()
        return calibrator.compute_data()


def build(model: onnx.ModelProto, scales: TensorsData, nodes: list[str]) -> onnx.ModelProto:
    """A copy of the model in which these convolutions are 8-bit."""
    with _quiet():
        # Weights of 7 bits: a processor without VNNI adds two products in 16 bits, which 8 would overflow.
        tool = QDQQuantizer(
            copy.deepcopy(model), per_channel=True, reduce_range=True, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8, tensors_range=scales, nodes_to_quantize=nodes, nodes_to_exclude=[],
            op_types_to_quantize=["Conv"], extra_options={},
        )  # fmt: skip
        if nodes:  # the tool takes an empty list for "all"
            tool.quantize_model()
            tool.model.topological_sort()
        quantized: onnx.ModelProto = tool.model.model
    return quantized


def signal(spec: ModelSpec, t: float) -> float:
    """alpha bar at step t."""
    return float(spec.alphas_cumprod()[int(t)])


def moved(model: onnx.ModelProto, spec: ModelSpec, probes: list[State], wanted: list[F32]) -> dict[str, float]:
    """Grey levels (root mean square) between the pictures that two eps estimate, by t: x_0 = (x_t - sqrt(1 - ab) eps) /
    sqrt(ab) (Song et al. 2021, equation 9)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    squares: dict[str, list[float]] = {}
    for (x, t), eps in zip(probes, wanted, strict=True):
        ab = signal(spec, t[0])
        got = session.run([spec.output], {spec.input_x: x, spec.input_t: t})[0]
        square = float(np.mean((got - eps) ** 2, dtype=np.float64))
        squares.setdefault(f"{t[0]:g}", []).append(127.5**2 * (1 - ab) / ab * square)
    return {t: float(np.sqrt(np.mean(values))) for t, values in squares.items()}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m export.quantize",
                                description="Give an exported float32 model 8-bit convolutions.")  # fmt: skip
    p.add_argument("model", type=Path, metavar="MODEL.onnx", help="that python -m export wrote in fp32")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument("--name", help="of the model and its file; default: the model's with -int8")
    p.add_argument("--data", nargs="+", type=Path, required=True, help="zip files or folders of training pictures")
    p.add_argument("--limit", type=int, default=10, help="pictures from each; default %(default)s")
    args = p.parse_args(argv)
    target = args.output / f"{args.name or args.model.stem + '-int8'}.onnx"
    try:
        check_temporary_folder()
        side = OnnxEngine(args.model, device="cpu").spec.image_size
        report = quantize(args.model, target, [x for d in args.data for x in read_sample(d, args.limit, side)])
    except (ZipSdkError, OSError) as e:
        print(f"python -m export.quantize: {e}", file=sys.stderr)
        return 1
    worst = max(report["parity"]["grey_levels"].values())
    print(f"{target}: {target.stat().st_size / 1e6:,.2f} MB; {report['quantized']} convolutions of 8 bits, "
          f"{len(report['float'])} of float32; the estimated picture moves by {worst:.2f} grey levels")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
