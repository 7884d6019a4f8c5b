"""Replace GroupNormalization by InstanceNormalization over groups, which is faster on a CPU.

ONNX Runtime has no CPU kernel for GroupNormalization, which takes a dozen passes over the tensor; InstanceNormalization
takes one, and scale and shift take two. Both forms are standard ONNX and give the same numbers but for rounding.
TensorRT reads both, and has a layer of its own for GroupNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def as_instances(graph: ir.Graph) -> None:
    """Replace each GroupNormalization, in place.

    A scale and shift by the time embedding that follows is merged with the norm's own.
    """
    for node in [n for n in graph if n.op_type == "GroupNormalization"]:
        x, gamma, beta = node.inputs
        assert x is not None and x.shape is not None and gamma is not None and beta is not None
        groups, channels = node.attributes["num_groups"].as_int(), [-1, *[1] * (len(x.shape) - 2)]
        scale, shift, last = _affine(graph, gamma, channels), _affine(graph, beta, channels), node
        new: list[ir.Node] = []
        if film := _film(node):
            mul, add = film
            factor, offset, last = _other(mul, node), _other(add, mul), add
            shift = _op(new, "Add", [_op(new, "Mul", [factor, shift]), offset])
            scale = _op(new, "Mul", [factor, scale])
        grouped = _op(new, "Reshape", [x, _constant(graph, f"groups_{groups}", np.array([0, groups, -1]))])
        one, zero = (
            _constant(graph, f"{name}_{groups}", np.full(groups, value, np.float32))
            for name, value in (("ones", 1), ("zeros", 0))
        )
        epsilon = node.attributes["epsilon"].as_float()
        normal = _op(new, "InstanceNormalization", [grouped, one, zero], epsilon=epsilon)
        normal = _op(new, "Reshape", [normal, _op(new, "Shape", [x])])
        y = _op(new, "Add", [_op(new, "Mul", [normal, scale]), shift])
        old = last.outputs[0]
        y.type, y.shape = old.type, old.shape
        graph.insert_before(last, new)
        old.replace_all_uses_with(y)
        graph.remove([*reversed(film), node] if film else [node], safe=True)
        for value in (gamma, beta):
            if value.name is not None and not value.uses():
                graph.initializers.pop(value.name, None)


def _film(norm: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the Mul and the Add after a norm, or None if anything else reads the values between."""
    found: list[ir.Node] = []
    for kind in ("Mul", "Add"):
        uses = list((found[-1] if found else norm).outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != kind:
            return None
        found.append(uses[0].node)
    return found[0], found[1]


def _other(node: ir.Node, source: ir.Node) -> ir.Value:
    """Return the one of two inputs that does not come from `source`."""
    (value,) = (v for v in node.inputs if v is not source.outputs[0])
    assert value is not None
    return value


def _op(nodes: list[ir.Node], kind: str, inputs: list[ir.Value], **attributes: float) -> ir.Value:
    nodes.append(ir.node(kind, inputs, attributes))
    return nodes[-1].outputs[0]


def _affine(graph: ir.Graph, value: ir.Value, shape: list[int]) -> ir.Value:
    """Add a norm's weights as (C, 1, 1), or (C, 1) before attention; norms of both ranks may share weights."""
    assert value.const_value is not None
    name = f"{value.name}_{'map' if len(shape) == 3 else 'row'}"
    return _constant(graph, name, value.const_value.numpy().reshape(shape))


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]
