"""ONNX files with a wrong node, dimension, weight, spec or place of the weights."""

from __future__ import annotations

import json
from functools import cache

import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.fuzz.edits import Draw, damage
from tests.fuzz.recipes import Recipe, pack, unpack
from tests.fuzz.texts import SPEC, draw_object

LOCATIONS = ("../outside.bin", "../../../../etc/hostname", "/etc/hostname", "beside.bin", "none.bin", "", ".",
             "inner/../../outside.bin",
             "beside.bin/x", "*", "a\0b", "http://127.0.0.1:9/x", "./beside.bin", "~/x")  # fmt: skip
OPS = ("Identity", "Tanh", "Sqrt", "Log", "Transpose", "Flatten", "Squeeze", "Resize", "Tile", "Expand",
       "NoSuchOp", "Loop",
       "If", "Pad", "Conv", "Gather", "Cast", "Shape", "Softmax", "NonZero", "RandomNormalLike", "Concat")  # fmt: skip
DIMS = (0, 1, -1, 3, 7, 32, 2**31 - 1, 2**31, 2**62, -(2**63))


@cache
def toy() -> bytes:
    """Return a valid model: eps = 0.2 x + 0.1 (mean of 3x3 pixels) through one convolution of ones."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    t = helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"])
    eps = helper.make_tensor_value_info("eps", TensorProto.FLOAT, ["N", 3, "H", "W"])
    weights = [
        helper.make_tensor("c0", TensorProto.FLOAT, [1], [0.2]),
        helper.make_tensor("c1", TensorProto.FLOAT, [1], [0.1]),
        helper.make_tensor("w", TensorProto.FLOAT, [3, 1, 1, 1], [1.0, 1.0, 1.0]),
    ]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["x", "c0"], ["a"]),
        helper.make_node("Mul", ["m", "c1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["eps"], group=3),
    ]
    graph = helper.make_graph(nodes, "toy", [x, t], [eps], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(proto, {"zipsdk": json.dumps(SPEC)})
    return bytes(proto.SerializeToString())


def draw_graph(draw: Draw) -> Recipe:
    """Draw the recipe of an ONNX file."""
    proto = onnx.ModelProto()
    proto.ParseFromString(toy())
    location = ""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        location = _edit(draw, proto) or location
    data = bytes(proto.SerializeToString())
    if draw(st.integers(0, 7)) == 0:
        data, location = damage(draw, data), ""
    return {"data": pack(data), "location": location}


def model_of(recipe: Recipe) -> bytes:
    """Return the file of a recipe."""
    return unpack(recipe["data"])


def _edit(draw: Draw, proto: onnx.ModelProto) -> str:
    """Change one thing; return the place of the weights if that was changed."""
    graph = proto.graph
    what = draw(st.sampled_from(("op", "attribute", "attribute", "wiring", "dims", "raw", "external", "external",
    "type", "spec", "spec",
                                 "spec", "version", "shape", "shape", "drop", "rename", "constant", "numbers",
                                 "numbers")))  # fmt: skip
    node = draw(st.sampled_from(list(graph.node))) if graph.node else None
    weight = draw(st.sampled_from(list(graph.initializer))) if graph.initializer else None
    value = draw(st.sampled_from([*graph.input, *graph.output])) if graph.input or graph.output else None
    number = draw(st.sampled_from(DIMS))
    if what == "op" and node:
        node.op_type = draw(st.sampled_from(OPS))
        node.domain = draw(st.sampled_from(("", "", "", "com.microsoft", "none")))
    elif what == "attribute" and node:
        name = draw(
            st.sampled_from(("kernel_shape", "pads", "strides", "dilations", "group", "auto_pad", "axis", "to", "perm"))
        )
        numbers = draw(st.sampled_from((1, 0, 2, 4, None)))
        value = number if numbers is None else [draw(st.sampled_from((number, 1, 2))) for _ in range(numbers)] or "x"
        del node.attribute[:]
        node.attribute.append(helper.make_attribute(name, value))
    elif what == "wiring" and node and node.input:
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(
            st.sampled_from(("x", "t", "eps", "m", "none", "", "w"))
        )
    elif what == "dims" and weight:
        del weight.dims[:]
        weight.dims.extend(draw(st.lists(st.sampled_from(DIMS), max_size=5)))
    elif what == "raw" and weight:
        del weight.float_data[:]
        weight.raw_data = draw(st.sampled_from((b"", b"\0" * 3, b"\xff" * 4, b"\0" * 12, bytes(64), b"\0\0\x80\x7f")))
    elif what == "external" and weight:
        place = draw(st.sampled_from(LOCATIONS))
        del weight.float_data[:]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entries = {"location": place}
        if draw(st.booleans()):
            entries["offset"] = draw(st.sampled_from(("0", "4", "-1", "1" * 25, "x", "4096", "9223372036854775807")))
            entries["length"] = draw(st.sampled_from(("4", "12", "0", "-1", "1" * 25, "x", "9223372036854775807")))
        for k, v in entries.items():
            entry = weight.external_data.add()
            entry.key, entry.value = k, v
        return place
    elif what == "type" and weight:
        weight.data_type = draw(st.integers(0, 25))
    elif what == "spec":
        del proto.metadata_props[:]
        if draw(st.integers(0, 7)):
            text = draw_object(draw, SPEC)
            helper.set_model_props(proto, {"zipsdk": text.encode("utf-8", "replace").decode()})
    elif what == "version":
        proto.ir_version = draw(st.sampled_from((0, 1, 3, 8, 12, 99, 2**40)))
        proto.opset_import[0].version = draw(st.sampled_from((0, 1, 6, 13, 22, 99)))
    elif what == "shape" and value:
        kind = value.type.tensor_type
        if draw(st.booleans()):
            kind.elem_type = draw(st.integers(0, 20))
        dims = kind.shape.dim
        change = draw(st.sampled_from(("value", "name", "drop", "add")))
        if change == "add":
            dims.add().dim_value = number
        elif change == "drop" and dims:
            dims.pop()
        elif dims:
            one = dims[draw(st.integers(0, len(dims) - 1))]
            if change == "name":
                one.dim_param = draw(st.sampled_from(("N", "H", "", "W")))
            else:
                one.dim_value = number
    elif what == "drop":
        parts = draw(st.sampled_from((graph.node, graph.initializer, graph.input, graph.output)))
        if parts:
            parts.pop()
    elif what == "rename" and value:
        value.name = draw(st.sampled_from(("x", "t", "eps", "", "é", "other")))
    elif what == "numbers" and weight:
        weight.ClearField("raw_data")
        value = draw(st.sampled_from((0.0, 1.0, -5.0, 1e38, float("nan"), float("inf"))))
        weight.float_data[:] = [value] * len(weight.float_data)
    elif what == "constant":
        graph.initializer.append(helper.make_tensor("t", TensorProto.FLOAT, [1], [5.0]))
    return ""
