"""`export.unet.UNet` -> an ONNX file that is checked before it gets its name.

The graph is eps = f(x, t), float32 outside whatever the precision inside, with a dynamic batch; it has
GroupNormalization nodes (opset 21) rather than their decomposition, or what is faster on a CPU
(`export.group_norm`), and a `ModelSpec` in its metadata. The file is compared with the torch model and only then moved
into place, with a sidecar (`zipsdk.models.sidecar`) that holds its hash and the comparison's numbers.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from export.denoises import of_torch
from export.group_norm import as_instances
from export.unet import GroupNorm, UNet
from zipsdk.errors import InputError, ModelError
from zipsdk.models.sidecar import sidecar_path, write_sidecar
from zipsdk.models.spec import METADATA_KEY, PRECISIONS, ModelSpec

#: Largest ||got - wanted|| / ||wanted|| of the prediction, by (precision, store). Sound models stay below a fifth of it
#: (a trained 2.5 M-parameter v model: 3e-5, 5e-4, 7e-4, 2e-2; 553 M random weights: 2e-5 in fp32, 9e-4 in fp16), and
#: a wrong graph is off by a tenth or more.
TOLERANCE = {("fp32", "same"): 1e-4, ("fp32", "fp16"): 5e-3, ("fp16", "same"): 2e-2, ("bf16", "same"): 1e-1}
#: Weights beyond this many bytes go into a file of their own: protobuf ends at 2 GiB, and the graph needs room as well.
SINGLE_FILE_BYTES = 1_800_000_000
#: Forms of group normalisation.
NORMS = ("group", "instance")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FP16_MAX = 65504.0

Array = NDArray[np.float32]
Run = Callable[[Array, Array], Array]


def export_onnx(
    model: UNet, spec: ModelSpec, path: str | Path, precision: str = "fp32", *, opset: int = 21, store: str = "same",
    norm: str = "group", denoises: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `model` to `path`, its external data (above `SINGLE_FILE_BYTES`) and its sidecar beside it.

    Inputs of the graph: ``spec.input_x`` float32 (N,3,H,W) and ``spec.input_t`` float32 (N,), whole numbers in
    0..T-1; output ``spec.output`` float32 (N,3,H,W). N is free; H and W are free multiples of ``spec.multiple`` when
    the spec is flexible, else the image size.

    Args:
        model: float32, on the CPU, three output channels; it is left as it is.
        spec: its `precision` is filled in here.
        precision: "fp32", "fp16" or "bf16", of the torso's convolutions and attention products; normalisation, softmax,
            time embedding and the last layer are float32 always.
        opset: 21 or later.
        store: "same", or "fp16" to keep the weights of an "fp32" graph as float16 with a Cast each, which a runtime
            folds when it loads: half the file, float32 arithmetic.
        norm: "group" for GroupNormalization, or "instance", which ONNX Runtime is faster with on a CPU.
        denoises: the record of `export.denoises.check`, for the sidecar; None says there that it was not run.

    Returns:
        The sidecar's "export" entry: precision, sizes, versions and the comparison.

    Raises:
        ModelError: the weights do not fit the precision, the spec does not fit the model, or the exported graph does
            not agree with the model. Nothing is left under `path` then but what lay there before.
    """
    path = Path(path)
    _check_request(model, spec, precision, opset, store, norm)
    spec = replace(spec, precision=precision)
    model = model.eval()
    cases = [(x, t, of_torch(model)(x, t)) for x, t in _probes(model, spec)]
    if not all(np.isfinite(wanted).all() for _, _, wanted in cases):
        raise ModelError("the model itself gives NaN or infinity in float32: the checkpoint or a flag is wrong")
    converted = model if precision == "fp32" else copy.deepcopy(model).to_torso(_DTYPES[precision])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        file = Path(folder) / path.name
        graph = _build(converted, spec, opset, store, norm)
        external = _save(graph, file)
        del graph
        _check_graph(file, sum(isinstance(m, GroupNorm) for m in model.modules()), norm)
        if precision == "bf16":
            run = of_torch(converted)
            what = "torch bf16; onnx graph not run: ONNX Runtime has no bf16 Conv on the CPU"
        else:
            run = _onnx_run(file, spec)
            what = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
        parity = _compare(run, cases, model, TOLERANCE[precision, store])
        report = {
            "precision": precision,
            "store": store,
            "norm": norm,
            "opset": opset,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tensors": len(model.state_dict()),
            "parity": {"got": what, "wanted": "torch float32", **parity},
            "denoises": dict(denoises or {"skipped": "not run"}),
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnx_ir": ir.__version__},
        }
        write_sidecar(file, {"export": report}, external)
        # the sidecar last: until it comes, an older one beside the new file is refused rather than believed
        data = _data_file(path)
        if not external:
            data.unlink(missing_ok=True)
        for source, target in [*((f, data) for f in external), (file, path), (sidecar_path(file), sidecar_path(path))]:
            source.replace(target)
    return report


def check_temporary_folder() -> None:
    """Check that there is a folder for temporary files, without which torch's exporter fails with a stack trace.

    Raises:
        InputError: there is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as e:
        raise InputError(f"temporary files: {e.strerror or e}; set TMPDIR to a folder that can be written to") from e


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _check_request(model: UNet, spec: ModelSpec, precision: str, opset: int, store: str, norm: str) -> None:
    if precision not in PRECISIONS:
        raise ModelError(f"precision: got {precision!r}, wanted one of {PRECISIONS}")
    if store not in ("same", "fp16") or (store == "fp16" and precision != "fp32"):
        raise ModelError(f"store: got {store!r} with precision {precision!r}, wanted 'same', or 'fp16' with 'fp32'")
    if norm not in NORMS:
        raise ModelError(f"norm: got {norm!r}, wanted one of {NORMS}")
    if opset < 21:
        raise ModelError(f"opset: got {opset}, wanted 21 or later, where GroupNormalization has a scale per channel")
    config = model.config
    if config.out_channels != 3:
        raise ModelError(f"got a model of {config.out_channels} output channels, wanted 3: see checkpoint.epsilon_only")
    if spec.multiple % config.downsampling:
        raise ModelError(f"spec.multiple: got {spec.multiple}, wanted a multiple of {config.downsampling}")
    if not np.array_equal(spec.alphas_cumprod(), config.alphas_cumprod()):
        got, wanted = ((s.beta_schedule, s.timesteps, s.beta_start, s.beta_end) for s in (spec, config))
        raise ModelError(f"spec's noise schedule: got {got}, the model has {wanted}; build the spec from the model")
    narrow = precision == "fp16" or store == "fp16"
    for name, tensor in model.state_dict().items():
        largest = float(tensor.abs().max())
        if not math.isfinite(largest):
            raise ModelError(f"{name} holds NaN or infinity: the checkpoint is damaged, or its training diverged")
        if narrow and largest > _FP16_MAX:
            raise ModelError(f"{name} reaches {largest:g}, beyond float16's {_FP16_MAX:g}; use precision bf16 or fp32")


# ---------------------------------------------------------------------------------------------- the graph


def _build(model: UNet, spec: ModelSpec, opset: int, store: str, norm: str) -> ir.Model:
    batch, height, width = (torch.export.Dim(name) for name in ("N", "h", "w"))
    sizes: dict[int, Any] = {0: batch}
    side = spec.image_size
    if spec.flexible:
        # torch.export takes a size of 1 for a constant, so the example has two of each step at least
        side = max(spec.image_size, 2 * spec.multiple)
        sizes |= {2: spec.multiple * height, 3: spec.multiple * width}
    example = (torch.zeros(2, 3, side, side), torch.zeros(2))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, example, dynamo=True, opset_version=opset, verbose=False, external_data=False,
            input_names=[spec.input_x, spec.input_t], output_names=[spec.output],
            dynamic_shapes={"x": sizes, "t": {0: batch}},
        )  # fmt: skip
    assert program is not None
    graph = program.model
    _strip(graph)
    if store == "fp16":
        _store_fp16(graph.graph)
    if norm == "instance":
        as_instances(graph.graph)
    graph.metadata_props[METADATA_KEY] = spec.to_json()
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter has to say about itself; its errors are exceptions."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # "torchvision is not installed"
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes? .* (was|were) assigned during export")
        warnings.filterwarnings("ignore", ".*will not be used, since it shares the same shape constraints", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"copyreg|torch\..*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*|onnxscript\..*|onnx_ir\..*")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _strip(model: ir.Model) -> None:
    """Remove the exporter's notes: stack traces with the paths of this machine, as large as a small model's weights."""
    graph = model.graph
    values = itertools.chain(graph.inputs, graph.initializers.values(), *(n.outputs for n in graph.all_nodes()))
    things: Iterator[Any] = itertools.chain((model, graph), graph.all_nodes(), values)
    for thing in things:
        thing.metadata_props.clear()
        thing.doc_string = None


def _store_fp16(graph: ir.Graph) -> None:
    """Turn the convolutions' float32 weights into float16 + Cast.

    Those of the time embedding stay: they are a tenth of the bytes, and rounding them costs four times the error.
    """
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 3:
            continue
        half = ir.tensor(tensor.numpy().astype(np.float16), name=f"{name}_fp16")
        stored = ir.Value(name=half.name, type=ir.TensorType(half.dtype), shape=value.shape, const_value=half)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{name}_fp32", value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(first, cast)


def _save(model: ir.Model, file: Path) -> list[Path]:
    """Write the model; the files of external data that it needs, one or none."""
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if total <= SINGLE_FILE_BYTES:
        ir.save(model, file)
        return []
    ir.save(model, file, external_data=_data_file(file).name)
    return [_data_file(file)]


def _check_graph(file: Path, norms: int, norm: str) -> None:
    onnx.checker.check_model(str(file))
    operators = Counter(node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node)
    got = operators["GroupNormalization"], operators["InstanceNormalization"]
    wanted = (norms, 0) if norm == "group" else (0, norms)
    if got != wanted:
        raise ModelError(
            f"the exporter wrote {got[0]} GroupNormalization and {got[1]} InstanceNormalization nodes, wanted "
            f"{wanted[0]} and {wanted[1]}; use the torch version that pyproject.toml names"
        )


# ---------------------------------------------------------------------------------------------- the comparison


def _probes(model: UNet, spec: ModelSpec) -> Iterator[tuple[Array, Array]]:
    """Noised pictures: t = 950 and 500 in one batch of the image size, t = 0 in another size where sizes are free."""
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


def _onnx_run(file: Path, spec: ModelSpec) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(x: Array, t: Array) -> Array:
        out: Array = session.run([spec.output], {spec.input_x: x, spec.input_t: t})[0]
        return out

    return run


def _compare(run: Run, cases: list[tuple[Array, Array, Array]], model: UNet, tolerance: float) -> dict[str, Any]:
    """Relative error at each t, of what the network predicts.

    Of a v or x0 model that is v or x0, solved for from epsilon: at t = 950 epsilon is the input but for one part in a
    hundred, and a network that answers nonsense would pass.
    """
    errors: dict[str, float] = {}
    alpha_bar = model.config.alphas_cumprod()
    for x, t, wanted in cases:
        got = run(x, t)
        for i, step in enumerate(t):
            if bad := int(np.count_nonzero(~np.isfinite(got[i]))):
                raise ModelError(
                    f"the exported model gives {bad} NaN or infinite values at t = {step:g}, and nothing was written. "
                    "With fp16, its range is too small for this model: use bf16 or fp32"
                )
            a, b = got[i].astype(np.float64), wanted[i].astype(np.float64)
            ab = float(alpha_bar[int(step)])
            if model.config.prediction == "v":
                a, b = ((e - math.sqrt(1 - ab) * x[i]) / math.sqrt(ab) for e in (a, b))
            elif model.config.prediction == "sample":
                a, b = ((x[i] - math.sqrt(1 - ab) * e) / math.sqrt(ab) for e in (a, b))
            errors[f"{step:g}"] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not max(errors.values()) <= tolerance:
        raise ModelError(
            f"the exported model does not agree with the torch model: relative errors {errors} by t, wanted at most "
            f"{tolerance:g}; nothing was written. Try --precision fp32, or report it with the checkpoint's name"
        )
    return {"relative_error": errors, "tolerance": tolerance}
