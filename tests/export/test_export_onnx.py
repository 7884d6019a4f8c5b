"""Test the exported graph: its operators, its agreement with torch, and that a failed export leaves no file."""

import json
import types
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")
save_file = pytest.importorskip("safetensors.torch").save_file

import export.to_onnx as exporter  # noqa: E402
from export import checkpoints, command  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from zipsdk.cli import main  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402
from zipsdk.models.sidecar import check_sidecar  # noqa: E402
from zipsdk.models.spec import ModelSpec  # noqa: E402

pytestmark = pytest.mark.torch

#: One model of free size, like zip-tiny, and one of a single size, like OpenAI's.
FREE = UNetConfig(image_size=32, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, prediction="v")
FIXED = UNetConfig(
    image_size=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_downsampling=(2,),
    num_head_channels=4, norm_groups=4, resblock_updown=True,
)  # fmt: skip
FREE_SPEC = ModelSpec(name="free", image_size=32, multiple=2, min_side=16, max_side=64, source_sha256="ab" * 32)
FIXED_SPEC = ModelSpec(name="fixed", image_size=16, multiple=2, min_side=16, max_side=16)


def seeded(config):
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


def tree(folder):
    return sorted(p.name for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """Export a model of free size in float32: (model, file, report)."""
    model, file = seeded(FREE), tmp_path_factory.mktemp("free") / "free.onnx"
    return model, file, exporter.export_onnx(model, FREE_SPEC, file)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Export a model of one size in float16: (model, file, report)."""
    model, file = seeded(FIXED), tmp_path_factory.mktemp("fixed") / "fixed.onnx"
    return model, file, exporter.export_onnx(model, FIXED_SPEC, file, "fp16")


def evaluate(file, x, t):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["eps"], {"x": x, "t": t})[0]


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# ------------------------------------------------------------------------------------------- operators


def test_graph(free):
    graph = onnx.load(free[1])
    operators = Counter(n.op_type for n in graph.graph.node)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 21)]
    assert operators["GroupNormalization"] == 2 * 8 + 1  # two in each residual block, one in the head
    assert operators["InstanceNormalization"] == 0
    assert operators["Gather"] == 1  # the table of alpha-bar
    assert operators["GatherND"] == 0
    assert {i.name for i in graph.graph.input} == {"x", "t"}
    assert [o.name for o in graph.graph.output] == ["eps"]
    kinds = {v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(("config", "spec", "precision"), [(FREE, FREE_SPEC, "fp32"), (FIXED, FIXED_SPEC, "fp16")])
def test_norms_for_cpus(config, spec, precision, free, tmp_path):
    """Check that both forms compute the same. FREE scales and shifts by the time embedding, FIXED has attention."""
    model = seeded(config)
    for norm in exporter.NORMS:
        report = exporter.export_onnx(model, spec, tmp_path / f"{norm}.onnx", precision, norm=norm)
        assert report["norm"] == norm
    graph = onnx.load(tmp_path / "instance.onnx").graph
    operators = Counter(n.op_type for n in graph.node)
    assert operators["GroupNormalization"] == 0
    assert operators["InstanceNormalization"] == sum(isinstance(m, torch.nn.GroupNorm) for m in model.modules())
    read = {name for n in graph.node for name in n.input}
    assert {i.name for i in graph.initializer} <= read  # nothing is left over
    x = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    t = np.array([0, 999, 437], np.float32)
    a, b = (evaluate(tmp_path / f"{norm}.onnx", x, t) for norm in exporter.NORMS)
    assert relative(a, b) < (1e-5 if precision == "fp32" else 5e-3)


def test_norms_for_cpus_merge_the_time_embedding(free, tmp_path):
    """Check for one large product and one large sum after each norm, with or without time embedding."""
    exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "m.onnx", norm="instance")
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx"), data_prop=True)
    producer = {n.output[0]: n for n in model.graph.node}
    for silu in (n for n in model.graph.node if n.op_type == "Sigmoid"):
        add = producer[silu.input[0]]
        if add.op_type != "Add":  # of the time embedding
            continue
        chain = [add]
        while chain[-1].op_type != "InstanceNormalization":
            chain.append(producer[chain[-1].input[0]])
        assert [n.op_type for n in chain] == ["Add", "Mul", "Reshape", "InstanceNormalization"]


def test_no_local_paths_are_in_the_file(free):
    raw = free[1].read_bytes()
    for word in (b"stack_trace", b"export.unet", b".py", str(exporter.__file__).encode(), b"class_hierarchy"):
        assert word not in raw


def test_two_exports_give_the_same_bytes(free, tmp_path):
    exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == free[1].read_bytes()


def test_the_spec_is_in_the_metadata(free, fixed):
    for (_, file, _), spec in ((free, FREE_SPEC), (fixed, replace(FIXED_SPEC, precision="fp16"))):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        assert set(metadata) == {"zipsdk"}
        assert ModelSpec.from_json(metadata["zipsdk"], str(file)) == spec


def test_sidecar_holds_the_comparison(free):
    _, file, report = free
    record = check_sidecar(file)
    assert record is not None
    assert record["export"] == json.loads(json.dumps(report))
    assert set(report["parity"]["relative_error"]) == {"950", "500", "0"}
    assert tree(file.parent) == ["free.onnx", "free.onnx.json"]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    other = file.parent / "copy"
    other.mkdir()
    (other / file.name).write_bytes(raw)
    (other / "free.onnx.json").write_bytes((file.parent / "free.onnx.json").read_bytes())
    with pytest.raises(ModelError, match="SHA-256"):
        check_sidecar(other / file.name)


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("n", "height", "width"), [(1, 32, 32), (3, 16, 64), (2, 2, 34)])
def test_any_batch_and_size(free, n, height, width):
    x = np.random.default_rng(1).standard_normal((n, 3, height, width)).astype(np.float32)
    t = np.array([0, 999, 437], np.float32)[:n]
    expected = free[0](torch.from_numpy(x), torch.from_numpy(t)).numpy()
    assert relative(evaluate(free[1], x, t), expected) < 1e-5


def test_one_size_takes_any_batch_and_no_other_size(fixed):
    x = np.random.default_rng(2).standard_normal((5, 3, 16, 16)).astype(np.float32)
    t = np.full(5, 300, np.float32)
    got = evaluate(fixed[1], x, t)
    assert got.dtype == np.float32
    assert relative(got, fixed[0](torch.from_numpy(x), torch.from_numpy(t)).numpy()) < 5e-3
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        evaluate(fixed[1], x[:, :, :8], t)


def test_float16_keeps_float32_parts(fixed):
    model, file, report = fixed
    graph = onnx.load(file).graph
    kinds = {i.name: i.data_type for i in graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert kinds["input_blocks.0.0.weight"] == kinds["middle_block.1.qkv.weight"] == half
    assert kinds["out.2.weight"] == kinds["time_embed.0.weight"] == single
    inferred = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    for node in graph.node:
        if node.op_type in ("GroupNormalization", "Softmax"):
            assert types[node.output[0]] == single, node.op_type
            assert {kinds[name] for name in node.input[1:]} <= {single}
    assert 1e-6 < max(report["parity"]["relative_error"].values()) < 5e-3
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the caller's model is not changed


def test_bfloat16_records_that_the_graph_was_not_run(tmp_path):
    report = exporter.export_onnx(seeded(FIXED), FIXED_SPEC, tmp_path / "b.onnx", "bf16")
    assert "not run" in report["parity"]["runtime"]
    assert 1e-4 < max(report["parity"]["relative_error"].values()) < 5e-2
    kinds = {i.name: i.data_type for i in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert kinds["input_blocks.0.0.weight"] == onnx.TensorProto.BFLOAT16


def test_stored_as_float16(free, tmp_path):
    model = free[0]
    report = exporter.export_onnx(model, FREE_SPEC, tmp_path / "s.onnx", store="fp16")
    assert 1e-6 < max(report["parity"]["relative_error"].values()) < 2e-3
    graph = onnx.load(tmp_path / "s.onnx").graph
    for initializer in graph.initializer:
        assert initializer.data_type != onnx.TensorProto.FLOAT or len(initializer.dims) < 3
    convolutions = sum(n.op_type == "Conv" for n in graph.node)
    assert sum(i.data_type == onnx.TensorProto.FLOAT16 for i in graph.initializer) == convolutions
    # float32 arithmetic: the same as float32 with the rounded weights
    rounded = seeded(FREE)
    for parameter in rounded.parameters():
        if parameter.ndim > 2:
            parameter.copy_(parameter.half().float())
    x, t = np.linspace(-1, 1, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32), np.array([500], np.float32)
    expected = rounded(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    assert relative(evaluate(tmp_path / "s.onnx", x, t), expected) < 1e-5


def test_external_data(tmp_path, monkeypatch, free):
    monkeypatch.setattr(exporter, "SINGLE_FILE_BYTES", 1000)
    file = tmp_path / "big.onnx"
    exporter.export_onnx(free[0], FREE_SPEC, file)
    assert tree(tmp_path) == ["big.onnx", "big.onnx.data", "big.onnx.json"]
    assert set(check_sidecar(file)["files"]) == {"big.onnx", "big.onnx.data"}
    x, t = np.ones((1, 3, 32, 32), np.float32), np.array([500], np.float32)
    np.testing.assert_array_equal(evaluate(file, x, t), evaluate(free[1], x, t))
    data = file.with_name("big.onnx.data")
    raw = bytearray(data.read_bytes())
    raw[-1] ^= 128
    data.write_bytes(raw)
    with pytest.raises(ModelError, match=r"big\.onnx\.data: got SHA-256"):
        check_sidecar(file)


# ------------------------------------------------------------------------------------------- failures


@pytest.fixture
def built(free, monkeypatch):
    """Return the graph that the next export will write instead of the right one."""
    graph = ir.from_proto(onnx.load(free[1]))
    monkeypatch.setattr(exporter, "_build", lambda *_: graph)
    return graph


def spoil(graph, value):
    name = "middle_block.0.in_layers.2.weight"
    weights = graph.graph.initializers[name].const_value.numpy().copy()
    weights[0] = value
    graph.graph.initializers[name].const_value = ir.tensor(weights, name=name)


def test_disagreement_writes_nothing(free, built, tmp_path):
    file = tmp_path / "m.onnx"
    exporter.export_onnx(free[0], FREE_SPEC, file)  # the unchanged graph passes
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    spoil(built, 0.5)
    with pytest.raises(ModelError, match=r"does not agree.*expected at most 0\.0001"):
        exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "new.onnx")
    with pytest.raises(ModelError, match="does not agree"):
        exporter.export_onnx(free[0], FREE_SPEC, file)
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_reported(free, built, tmp_path, value):
    spoil(built, value)
    with pytest.raises(ModelError, match=r"\d+ NaN or infinite values at t = 950"):
        exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "m.onnx")
    assert tree(tmp_path) == []


def test_an_error_at_high_noise_is_found(free, built, tmp_path):
    """Spoil t = 950 alone, where epsilon of a v model is nearly its input."""
    name = "alphas_cumprod"
    table = built.graph.initializers[name].const_value.numpy().copy()
    table[950] *= 1.5
    built.graph.initializers[name].const_value = ir.tensor(table, name=name)
    with pytest.raises(ModelError, match="does not agree"):
        exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "m.onnx")


def test_missing_group_normalization_is_found(free, built, tmp_path):
    node = next(n for n in built.graph if n.op_type == "GroupNormalization")
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    built.graph.remove(node)
    with pytest.raises(ModelError, match="16 GroupNormalization and 0 InstanceNormalization nodes, expected 17 and 0"):
        exporter.export_onnx(free[0], FREE_SPEC, tmp_path / "m.onnx")
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision: got 'int8'"),
        ({"store": "fp16", "precision": "fp16"}, "store: got 'fp16' with precision 'fp16'"),
        ({"norm": "layer"}, "norm: got 'layer'"),
        ({"opset": 18}, "opset: got 18"),
        ({"spec": replace(FREE_SPEC, multiple=1)}, r"spec\.multiple: got 1"),
        ({"spec": replace(FREE_SPEC, beta_end=0.03)}, r"got noise schedule \('linear', 1000, 0\.0001, 0\.03\)"),
        ({"model": seeded(replace(FREE, out_channels=6))}, "6 output channels"),
    ],
)
def test_invalid_requests_are_refused(free, tmp_path, options, message):
    with pytest.raises(ModelError, match=message):
        exporter.export_onnx(**{"model": free[0], "spec": FREE_SPEC, "path": tmp_path / "m.onnx"} | options)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (70000.0, {"precision": "fp16"}, "time_embed.0.bias reaches 70000, beyond float16's 65504"),
        (70000.0, {"store": "fp16"}, "beyond float16's 65504"),
        (float("nan"), {}, "time_embed.0.bias holds NaN"),
        (float("-inf"), {"precision": "bf16"}, "time_embed.0.bias holds NaN or infinity"),
    ],
)
def test_invalid_weights_are_refused(tmp_path, value, options, message):
    model = seeded(FREE)
    model.time_embed[0].bias[3] = value
    with pytest.raises(ModelError, match=message):
        exporter.export_onnx(model, FREE_SPEC, tmp_path / "m.onnx", **options)


def test_float16_overflow_of_activations_is_found(tmp_path):
    model = seeded(FIXED)
    model.input_blocks[0][0].weight.mul_(60000)  # each weight fits, but sums overflow
    with pytest.raises(ModelError, match=r"NaN or infinite values at t = 950.*use bf16"):
        exporter.export_onnx(model, FIXED_SPEC, tmp_path / "m.onnx", "fp16")
    assert tree(tmp_path) == []


# ------------------------------------------------------------------------------------------- command


def test_command(tmp_path, capsys):
    save_file(seeded(FREE).state_dict(), tmp_path / "ema.safetensors", {"config": json.dumps(FREE.to_dict())})
    out = tmp_path / "out"
    options = ["--license", "Apache-2.0", "--training-data", "noise", "--min-side", "16", "--lam", "2"]
    options.append("--no-denoise-check")  # random weights
    assert main(["export", str(tmp_path / "ema.safetensors"), "-o", str(out), "--name", "small", *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "small: 44,211 parameters in 104 tensors; sides 16 to 512 by 2" in printed.out
    assert "relative error" in printed.out
    assert tree(out) == ["small.onnx", "small.onnx.json"]
    assert check_sidecar(out / "small.onnx")["export"]["denoises"] == {"skipped": "--no-denoise-check"}
    session = onnxruntime.InferenceSession(str(out / "small.onnx"), providers=["CPUExecutionProvider"])
    spec = ModelSpec.from_json(session.get_modelmeta().custom_metadata_map["zipsdk"], "small")
    sha256 = checkpoints.sha256_file(tmp_path / "ema.safetensors")
    assert spec == ModelSpec(
        name="small", image_size=32, multiple=2, min_side=16, max_side=512, source_sha256=sha256, license="Apache-2.0",
        training_data="noise", lam=2.0,
    )  # fmt: skip


def test_command_errors(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none.pt"), "-o", str(tmp_path)]) == 3
    assert "no such file" in capsys.readouterr().err
    for arguments in (["-o", "d"], ["x.pt", "-o", "d", "--random-adm"]):
        assert main(["export", *arguments]) == 2
        assert "give a CHECKPOINT" in capsys.readouterr().err


def test_invalid_plan_options_fail_before_the_export(tmp_path, monkeypatch, capsys):
    from zipsdk.engines.tensorrt import request

    save_file(seeded(FREE).state_dict(), tmp_path / "ema.safetensors", {"config": json.dumps(FREE.to_dict())})
    monkeypatch.setattr(command, "export_onnx", lambda *_, **__: pytest.fail("it was exported first"))
    run = [str(tmp_path / "ema.safetensors"), "-o", str(tmp_path / "out"), "--name", "small", "--engine"]
    fake = types.SimpleNamespace(ComputeCapability=types.SimpleNamespace(__members__={"SM86": 0}))
    monkeypatch.setattr(request, "runtime", lambda flavor: fake)
    for found, options, code, text in (
        ([], [], 3, "zipsdk[rtx]"),
        (["trt", "rtx"], [], 2, "choose one"),
        (["rtx"], ["--batch", "4,1"], 2, "batches: got [4, 1]"),
        (["rtx"], ["--target", "sm86,sm99"], 2, "targets: got 'sm99'"),
    ):
        monkeypatch.setattr(request, "installed", lambda found=found: found)
        assert main(["export", *run, *options]) == code
        assert text in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "small.plan").write_bytes(b"hours of work")
    assert main(["export", *run]) == 2
    assert "small.plan: got a file that exists" in capsys.readouterr().err
    assert tree(tmp_path / "out") == ["small.plan"]


def test_random_weights_are_in_the_name(tmp_path, monkeypatch, capsys):
    calls = []

    def fake(model, spec, path, precision, **options):
        calls.append((model, spec, path))
        parity = {"relative_error": {"0": 0.0}, "tolerance": 1.0, "runtime": ""}
        return {"parameters": 0, "tensors": 0, "parity": parity}

    monkeypatch.setattr(command, "export_onnx", fake)
    options = ["--random-adm", "--channels", "32", "-o", str(tmp_path), "--precision", "bf16"]
    for name in ([], ["--name", "adm"]):
        assert main(["export", *options, *name]) == 0
    (model, spec, path), (_, named, _) = calls
    assert path.name == "adm256-32ch-random-weights-bf16.onnx"
    assert named.name == "adm-random-weights"
    assert "random weights" in spec.training_data
    assert (spec.image_size, spec.min_side, spec.max_side, spec.multiple) == (256, 256, 256, 32)
    assert model.config.model_channels == 32
    capsys.readouterr()
