"""Export `export.unet.UNet` to an ONNX file, and check the file before it gets its name.

The graph is eps = f(x, t) with a dynamic batch. Its inputs and its output are float32 at every precision. It has
GroupNormalization nodes (opset 21), not their decomposition, or InstanceNormalization nodes, which are faster on a CPU
(`export.group_norm`), and a `ModelSpec` in its metadata. The file is compared with the torch model (`export.parity`)
and only then moved into place, with a sidecar (`zipsdk.models.sidecar`) that holds its hash and the comparison.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from zipsdk.errors import InputError, ModelError
from zipsdk.models.sidecar import sidecar_path, write_sidecar
from zipsdk.models.spec import METADATA_KEY, PRECISIONS, ModelSpec

from .denoise_check import of_torch
from .group_norm import as_instances
from .parity import TOLERANCE, compare, open_onnx, probes
from .unet import GroupNorm, UNet

#: Larger weights go into a file of their own: a protobuf file ends at 2 GiB, and the graph needs room as well.
SINGLE_FILE_BYTES = 1_800_000_000
#: Forms of group normalization.
NORMS = ("group", "instance")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FP16_MAX = 65504.0


def export_onnx(
    model: UNet, spec: ModelSpec, path: str | Path, precision: str = "fp32", *, opset: int = 21, store: str = "same",
    norm: str = "group", denoises: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a model, its external data (above `SINGLE_FILE_BYTES`) and its sidecar.

    Inputs of the graph: ``spec.input_x`` float32 (N, 3, H, W) and ``spec.input_t`` float32 (N,), integers in 0..T-1;
    output: ``spec.output`` float32 (N, 3, H, W). N is free. H and W are free multiples of ``spec.multiple`` if the spec
    is flexible, else the image size.

    Args:
        model: float32, on the CPU, three output channels; it is not changed.
        spec: its `precision` is filled in here.
        path: the ``.onnx`` file; external data and sidecar go beside it.
        precision: "fp32", "fp16" or "bf16", of the torso's convolutions and attention products; normalization, softmax,
            time embedding and the last layer are always float32.
        opset: 21 or later.
        store: "same", or "fp16" to store the weights of an "fp32" graph as float16 with a Cast each, which a runtime
            folds when it loads: half the file, float32 arithmetic.
        norm: "group" for GroupNormalization, or "instance" for InstanceNormalization, which ONNX Runtime is faster with
            on a CPU.
        denoises: the record of `export.denoise_check.check`, for the sidecar; None records that it was not run.

    Returns:
        The sidecar's "export" entry: precision, sizes, versions and the comparison.

    Raises:
        ModelError: the weights do not fit the precision, the spec does not fit the model, or the exported graph does
            not agree with the model. Files already at `path` are left as they were.
    """
    path = Path(path)
    check_options(precision, opset, store, norm)
    _check_spec(model, spec)
    _check_weights(model, narrow="fp16" in (precision, store))
    spec = replace(spec, precision=precision)
    model = model.eval()
    cases = [(x, t, of_torch(model)(x, t)) for x, t in probes(model, spec)]
    if not all(np.isfinite(eps).all() for _, _, eps in cases):
        raise ModelError("torch model: got NaN or infinity in float32, expected finite values; check the checkpoint "
                         "and the flags")  # fmt: skip
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
            run = open_onnx(file, spec)
            what = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
        parity = compare(run, cases, model, TOLERANCE[precision, store])
        report = {
            "precision": precision,
            "store": store,
            "norm": norm,
            "opset": opset,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tensors": len(model.state_dict()),
            "parity": {"runtime": what, "reference": "torch float32", **parity},
            "denoises": dict(denoises or {"skipped": "not run"}),
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnx_ir": ir.__version__},
        }
        write_sidecar(file, {"export": report}, external)
        # The sidecar goes last: an older one beside the new file fails its hash check.
        data = data_path(path)
        if not external:
            data.unlink(missing_ok=True)
        for source, target in [*((f, data) for f in external), (file, path), (sidecar_path(file), sidecar_path(path))]:
            source.replace(target)
    return report


def check_temporary_folder() -> None:
    """Check that there is a folder for temporary files; without one, torch's exporter fails with a stack trace.

    Raises:
        InputError: there is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as e:
        raise InputError(f"temporary files: {e.strerror or e}; set TMPDIR to a folder that can be written to") from e


def data_path(path: Path) -> Path:
    """Return the file of a model's external data, ``model.onnx.data``."""
    return path.with_name(path.name + ".data")


def check_options(precision: str, opset: int, store: str, norm: str) -> None:
    """Check the options of `export_onnx`.

    Raises:
        ModelError: an option is unknown, or does not fit the others.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision: got {precision!r}, expected one of {PRECISIONS}")
    if store not in ("same", "fp16") or (store == "fp16" and precision != "fp32"):
        raise ModelError(f"store: got {store!r} with precision {precision!r}, expected 'same', or 'fp16' with 'fp32'")
    if norm not in NORMS:
        raise ModelError(f"norm: got {norm!r}, expected one of {NORMS}")
    if opset < 21:
        raise ModelError(f"opset: got {opset}, expected 21 or later, where GroupNormalization has a scale per channel")


def _check_spec(model: UNet, spec: ModelSpec) -> None:
    config = model.config
    if config.out_channels != 3:
        raise ModelError(
            f"model: got {config.out_channels} output channels, expected 3; cut them by export.checkpoints.epsilon_only"
        )
    if spec.multiple % config.downsampling:
        raise ModelError(f"spec.multiple: got {spec.multiple}, expected a multiple of {config.downsampling}")
    if not np.array_equal(spec.alphas_cumprod(), config.alphas_cumprod()):
        got, expected = ((s.beta_schedule, s.timesteps, s.beta_start, s.beta_end) for s in (spec, config))
        raise ModelError(f"spec: got noise schedule {got}, expected {expected}; build the spec from the model")


def _check_weights(model: UNet, narrow: bool) -> None:
    for name, tensor in model.state_dict().items():
        largest = float(tensor.abs().max())
        if not math.isfinite(largest):
            raise ModelError(f"{name} holds NaN or infinity: the checkpoint is damaged, or its training diverged")
        if narrow and largest > _FP16_MAX:
            raise ModelError(f"{name} reaches {largest:g}, beyond float16's {_FP16_MAX:g}; use precision bf16 or fp32")


def _build(model: UNet, spec: ModelSpec, opset: int, store: str, norm: str) -> ir.Model:
    batch, height, width = (torch.export.Dim(name) for name in ("N", "h", "w"))
    sizes: dict[int, Any] = {0: batch}
    side = spec.image_size
    if spec.flexible:
        # torch.export specializes sizes of 1, so the example has at least two of each step.
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
    """Silence the warnings of torch's exporter about itself; its errors are exceptions."""
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
    """Remove the exporter's metadata: stack traces with local paths, as large as a small model's weights."""
    graph = model.graph
    values = itertools.chain(graph.inputs, graph.initializers.values(), *(n.outputs for n in graph.all_nodes()))
    items: Iterator[Any] = itertools.chain((model, graph), graph.all_nodes(), values)
    for item in items:
        item.metadata_props.clear()
        item.doc_string = None


def _store_fp16(graph: ir.Graph) -> None:
    """Store the convolutions' float32 weights as float16, each with a Cast.

    The weights of the time embedding stay float32: they are a tenth of the bytes, and rounding them costs four times
    the error.
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
    """Write the model, and return its files of external data, one or none."""
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if total <= SINGLE_FILE_BYTES:
        ir.save(model, file)
        return []
    ir.save(model, file, external_data=data_path(file).name)
    return [data_path(file)]


def _check_graph(file: Path, norms: int, norm: str) -> None:
    onnx.checker.check_model(str(file))
    operators = Counter(node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node)
    got = operators["GroupNormalization"], operators["InstanceNormalization"]
    expected = (norms, 0) if norm == "group" else (0, norms)
    if got != expected:
        raise ModelError(
            f"exported graph: got {got[0]} GroupNormalization and {got[1]} InstanceNormalization nodes, expected "
            f"{expected[0]} and {expected[1]}; use the torch version that pyproject.toml names"
        )
