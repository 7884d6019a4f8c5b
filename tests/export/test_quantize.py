"""Test 8-bit models: which parts are 8-bit, that images hardly change, and that a refused model leaves no file."""

import json
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import export.to_onnx as exporter  # noqa: E402
import zipsdk  # noqa: E402
from bench.common import markdown, record  # noqa: E402
from bench.common.metrics import psnr  # noqa: E402
from bench.quality import int8  # noqa: E402
from export import quantize  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from zipsdk.engines.onnxruntime import OnnxEngine  # noqa: E402
from zipsdk.errors import InputError, ModelError  # noqa: E402
from zipsdk.models import resolve  # noqa: E402
from zipsdk.models.sidecar import check_sidecar  # noqa: E402
from zipsdk.models.spec import ModelSpec  # noqa: E402

pytestmark = pytest.mark.torch

CONFIG = UNetConfig(
    image_size=32, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, prediction="v"
)
SPEC = ModelSpec(name="small", image_size=32, multiple=2, min_side=16, max_side=64)


def natural(n, side):
    """Draw smooth images, uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-1, 1, (3 * n, 3))]
    return np.uint8(127.5 + 100 * np.stack(waves, -1).reshape(side, side, n, 3).transpose(2, 0, 1, 3))


def sample_images():
    return [*natural(3, 32), *natural(1, 64)]


def tree(folder):
    return sorted(p.name for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("source") / "small.onnx"
    exporter.export_onnx(UNet(CONFIG).eval().requires_grad_(False), SPEC, file, store="fp16")
    return file


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """Quantize the source: (file, report)."""
    file = tmp_path_factory.mktemp("made") / "small-int8.onnx"
    return file, quantize.quantize(source, file, sample_images())


def optimized_operators(file, tmp_path):
    """Count the operators in the graph that ONNX Runtime optimizes the file to."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def test_onnx_runtime_computes_in_8_bits(made, tmp_path):
    file, report = made
    convolutions = [n.name for n in onnx.load(file).graph.node if n.op_type == "Conv"]
    assert {convolutions[0], convolutions[-1]} <= set(report["float"])
    assert report["quantized"] + len(report["float"]) == len(convolutions)
    assert report["quantized"] > len(convolutions) // 2
    operators = optimized_operators(file, tmp_path)
    assert (operators["QLinearConv"], operators["Conv"]) == (report["quantized"], len(report["float"]))


def test_weights_leave_a_bit_for_processors_without_vnni(made):
    """Check that two products of 255 and the largest weight fit 16 bits."""
    weights = [
        onnx.numpy_helper.to_array(i) for i in onnx.load(made[0]).graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4
    ]  # fmt: skip
    assert len(weights) == made[1]["quantized"]
    assert 32 < max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64
    assert all(len(np.unique(np.abs(w.astype(int)).max((1, 2, 3)))) == 1 for w in weights)  # one scale per channel


def test_spec_and_sidecar(source, made):
    file, report = made
    spec = zipsdk.load_engine(file, device="cpu").spec
    assert (spec.name, spec.precision, spec.min_side, spec.max_side) == ("small-int8", "int8", 16, 64)
    sidecar = check_sidecar(file)
    assert sidecar is not None and sidecar["export"] == json.loads(json.dumps(report))
    assert report["parameters"] == check_sidecar(source)["export"]["parameters"]
    assert tree(file.parent) == ["small-int8.onnx", "small-int8.onnx.json"]
    assert set(onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map) == {"zipsdk"}


def test_result_is_near_the_float_model_at_other_sizes(source, made):
    engines = [zipsdk.load_engine(f, device="cpu") for f in (source, made[0])]
    for side in (32, 48):
        x = natural(3, side)
        a, b = (zipsdk.Purifier(e, "blur2", preset="fast", seed=0).run(x) for e in engines)
        assert np.any(a != b)
        assert psnr(a, b) > 40


def test_two_runs_give_the_same_bytes(source, made, tmp_path):
    quantize.quantize(source, tmp_path / "small-int8.onnx", sample_images())
    assert (tmp_path / "small-int8.onnx").read_bytes() == made[0].read_bytes()


def test_plain_computes_the_same_as_stored_float16(source):
    model = quantize.plain(onnx.load(source))
    assert all(i.data_type != onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    engine = OnnxEngine(source, device="cpu")
    x, t = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32), np.full(2, 100, np.float32)
    change = quantize.change(model, engine.spec, [(x, t)], [engine(x, t)])
    assert change["100"] < 1e-3


def test_change_is_that_of_the_estimated_image_in_gray_levels(source):
    model, engine = onnx.load(source), OnnxEngine(source, device="cpu")
    x, t = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32), np.full(1, 200, np.float32)
    eps = engine(x, t)
    ab = engine.spec.alphas_cumprod()[200]
    a, b = ((x.astype(float) - np.sqrt(1 - ab) * e) / np.sqrt(ab) * 127.5 for e in (eps, eps + np.float32(0.1)))
    change = quantize.change(model, engine.spec, [(x, t)], [eps + np.float32(0.1)])
    assert change["200"] == pytest.approx(np.sqrt(np.mean((a - b) ** 2)), rel=1e-3)


def test_states_are_those_of_both_presets(source):
    states = quantize.loop_states(OnnxEngine(source, device="cpu"), sample_images()[:2])
    steps = [int(t[0]) for _, t in states]
    one = [*range(950, -1, -50)], [400, 267, 133, 0]
    assert sorted(steps) == sorted(2 * [*one[0], *one[1]])
    assert not np.array_equal(states[0][0], states[1][0])  # copies: the loop overwrites its state


def test_convolutions_that_change_the_image_too_much_stay_float(source, made, tmp_path, monkeypatch):
    alone = sorted(made[1]["alone"].items(), key=lambda item: item[1])
    limit = (alone[-2][1] + alone[-3][1]) / 2
    monkeypatch.setattr(quantize, "ALONE", limit)
    report = quantize.quantize(source, tmp_path / "m.onnx", sample_images())
    assert set(report["float"][1:-1]) == {alone[-1][0], alone[-2][0]}
    assert report["alone"] == made[1]["alone"]


def test_refused_requests_write_nothing(source, made, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="got precision int8, expected fp32"):
        quantize.quantize(made[0], tmp_path / "m.onnx", sample_images())
    with pytest.raises(InputError, match="got none"):
        quantize.quantize(source, tmp_path / "m.onnx", [])
    for name in ("TOGETHER", "ALONE"):  # too large a change as a whole; no convolution left to quantize
        with monkeypatch.context() as m:
            m.setattr(quantize, name, 1e-9)
            with pytest.raises(ModelError, match="nothing was written"):
                quantize.quantize(source, tmp_path / "m.onnx", sample_images())
    assert tree(tmp_path) == []


def test_command(source, made, tmp_path, capsys):
    from PIL import Image

    for i, image in enumerate(sample_images()):
        folder = tmp_path / "data" / str(image.shape[0])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    data = [str(tmp_path / "data" / side) for side in ("32", "64")]
    assert quantize.main([str(source), "-o", str(tmp_path / "out"), "--data", *data]) == 0
    assert "convolutions of 8 bits" in capsys.readouterr().out
    assert tree(tmp_path / "out") == ["small-int8.onnx", "small-int8.onnx.json"]
    assert quantize.main([str(made[0]), "-o", str(tmp_path / "no"), "--data", *data]) == 1
    assert "expected fp32" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# ------------------------------------------------------------------------------------------- the bundled one


def test_bundled_model(tmp_path):
    file = resolve("zip-tiny-int8")
    assert file is not None and (file.parent / "zip-tiny-int8.md").exists()
    engines = [zipsdk.load_engine(name, device="cpu") for name in ("zip-tiny", "zip-tiny-int8")]
    assert [e.spec.precision for e in engines] == ["fp32", "int8"]
    assert engines[1].spec.source_sha256 == engines[0].spec.source_sha256
    assert optimized_operators(file, tmp_path)["QLinearConv"] == 45
    for preset in ("fast", "paper"):
        a, b = (zipsdk.Purifier(e, "blur2+gray", preset=preset, seed=0).run(natural(2, 64)) for e in engines)
        assert psnr(a, b) > 45


def test_the_card_shows_the_record():
    content = record.read("int8")
    assert f"{markdown.START}\n{int8.text(content)}\n{markdown.END}" in int8.CARD.read_text()


def test_speed_alternates_models_and_ignores_the_first_round(monkeypatch):
    monkeypatch.setattr(int8, "SHAPES", ((2, 16, 3),))
    now, asked = 0.0, []

    def takes(name, seconds):
        def run(x, t):
            nonlocal now
            asked.append(name)
            assert x.shape == (2, 3, 16, 16) and t.shape == (2,)
            now += seconds if len(asked) > 2 else 100.0

        return run

    (row,) = int8.speed({"a": takes("a", 0.5), "b": takes("b", 0.25)}, lambda: now)
    assert asked == 4 * ["a", "b"]
    assert row["ms"] == {"a": 500.0, "b": 250.0} and row["times_faster"] == {"a": 1.0, "b": 2.0}


def test_quality_distinguishes_the_models(source, made):
    engines = [zipsdk.load_engine(f, device="cpu") for f in (source, made[0])]
    x = natural(3, 32)
    same = int8.quality([engines[0]] * 2, x, 2, "fast")
    assert same["psnr_between"] == float("inf") and same["gain_change_db"] == 0
    row = int8.quality(engines, x, 2, "fast")
    assert row["gain_db"][0] == same["gain_db"][0]
    assert row["gain_db"][1] - row["gain_db"][0] == pytest.approx(row["gain_change_db"])
    assert 40 < row["psnr_between"] < 100
