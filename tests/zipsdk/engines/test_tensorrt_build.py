"""Build plans with TensorRT-RTX on the CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import types

import pytest

from zipsdk import cli
from zipsdk.cli import doctor, main
from zipsdk.engines.tensorrt import build, flavor, plan_file, request
from zipsdk.errors import EngineError, InputError, MissingDependencyError, ModelError
from zipsdk.models import resolve

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")


pytestmark = pytest.mark.trt


def test_the_bundled_model_is_built(tiny):
    path, record = tiny
    header = path.read_bytes()[: trt.Runtime(trt.Logger()).engine_header_size]
    assert len(header) == 64 and path.stat().st_size > 1e6
    read = plan_file.read_plan(path)
    assert read["plan"] == record["plan"]
    assert read["plan"]["flavor"] == "rtx" and read["plan"]["runtime"] == trt.__version__
    assert read["plan"]["targets"] == ["sm86", "sm89"] and read["plan"]["batches"] == [1, 4]
    spec = read["spec"]
    assert (spec.min_side, spec.image_size, spec.max_side, spec.name) == (32, 32, 32, "zip-tiny")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_256x256_guided_diffusion_unet_is_built(tmp_path, precision):
    """Export and build the real graph at a reduced width by one command."""
    pytest.importorskip("torch")
    arguments = ["export", "--random-adm", "--channels", "32", "-o", str(tmp_path), "--precision", precision]
    assert main([*arguments, "--engine", "--batch", "1,2", "--target", "sm86"]) == 0
    (path,) = tmp_path.glob("*.plan")
    record = plan_file.read_plan(path)
    assert record["spec"].precision == precision and record["spec"].image_size == 256
    assert record["plan"]["onnx"]["name"] == path.with_suffix(".onnx").name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "expected integers of at least 1"),
        ({"batches": (4, 1)}, "each larger than the one before"),
        ({"batches": (0,)}, "at least 1"),
        ({"batches": (1, 4.0)}, "integers"),
        ({"batches": (True,)}, "integers"),
        ({"sizes": (33,)}, "multiples of 4"),
        ({"sizes": (32.0,)}, "in whole pixels"),
        ({"sizes": (32, 64)}, "one side, or the smallest, the usual and the largest"),
        ({"sizes": (64, 32, 128)}, "rising multiples"),
        ({"targets": ["sm75"]}, "sm75.*return zeros without an error.*expected some of sm80"),
        ({"targets": ["sm90"]}, "sm90.*expected some of sm80, sm86"),
        ({"targets": ["ampere"]}, "expected some of"),
        ({"targets": ["sm86", "sm86"]}, "each once"),
        ({"flavor": "torch"}, "expected one of trt, rtx"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", **{"flavor": "rtx", **options})
    assert not list(tmp_path.iterdir())


def test_invalid_models_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    broken = tmp_path / "broken.onnx"
    with pytest.raises(ModelError, match="no such file"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    model = onnx.load(str(resolve("zip-tiny")))
    metadata = list(model.metadata_props)
    del model.metadata_props[:]
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match="without a zipsdk spec"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    model.metadata_props.extend(metadata)
    model.graph.node[3].op_type = "Unknown"
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match=r"TensorRT-RTX .* cannot read it .*Unknown"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_the_log_of_tensorrt_reaches_the_user(tmp_path, monkeypatch):
    """TensorRT returns None and logs the reason, for example for a profile that contradicts the graph."""
    unsupported = lambda spec, sizes: dataclasses.replace(spec, multiple=2, min_side=6, image_size=6, max_side=6)  # noqa: E731
    monkeypatch.setattr(build, "restrict_sizes", unsupported)  # not a multiple of 4
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot build it \(.{20}"):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,))
    assert not list(tmp_path.iterdir())


class Mistake(Exception):
    pass


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("returns False", EngineError, "was stopped; nothing was written"),
        ("raises", Mistake, "in the caller"),
        ("Ctrl-C", KeyboardInterrupt, "^$"),
    ],
)
def test_a_stopped_build_leaves_no_file(tmp_path, how, kind, message):
    calls = []

    def progress(phase, step, steps):
        calls.append((phase, step, steps))
        assert 1 <= step <= steps and phase
        if len(calls) == 50 and how == "raises":
            raise Mistake("in the caller")
        if len(calls) == 50 and how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        return len(calls) < 50 or how == "Ctrl-C"

    with pytest.raises(kind, match=message):
        build.build(
            resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,), sizes=(32,), progress=progress
        )
    assert len(calls) == 50 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_logger_runs_stops_the_build(tmp_path, monkeypatch, capfd):
    """Python raises KeyboardInterrupt in the first callback, usually the logger, where it was lost."""
    make, pressed = build.collecting_logger, []

    def pressing(trt):
        class Logger(type(make(trt))):
            def log(self, severity, message):
                if not pressed and threading.current_thread() is threading.main_thread():
                    pressed.append(message)
                    os.kill(os.getpid(), signal.SIGINT)
                super().log(severity, message)

        # the logger also speaks before the build
        logger = make(trt)
        logger.__class__ = Logger
        return logger

    monkeypatch.setattr(build, "collecting_logger", pressing)
    with pytest.raises(KeyboardInterrupt):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,), sizes=(32,))
    assert pressed and not list(tmp_path.iterdir())
    assert "Exception caught" not in capfd.readouterr().err


def test_the_callers_signal_handler_is_kept_and_threads_may_build(tmp_path, monkeypatch):
    seen, results = [], []
    builder = types.SimpleNamespace(build=lambda *args: seen.append(signal.getsignal(signal.SIGINT)) or b"")
    monkeypatch.setattr(build, "PlanBuilder", lambda *args: builder)

    def compile_():
        results.append(build.compile_plan(None, None, None, None))

    handler = lambda *_: None  # noqa: E731
    previous = signal.signal(signal.SIGINT, handler)
    try:
        compile_()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [handler]
    thread = threading.Thread(target=compile_)
    thread.start()
    thread.join()
    assert results == [b"", b""]


def test_an_unwritable_output_is_refused_before_the_build(tmp_path):
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(OSError):
        build.build(resolve("zip-tiny"), tmp_path / "file" / "x.plan", flavor="rtx", batches=(1,), sizes=(32,),
                   progress=lambda *step: calls.append(step) or True)  # fmt: skip
    assert not calls


def test_all_targets_are_passed_to_the_builder(tmp_path):
    """The plan must be built for the targets in its sidecar; TensorRT-RTX's default gives another plan."""
    made = []
    for name, targets in (("a", None), ("b", [f"sm{n}" for n in flavor.compute_capabilities(trt)])):
        path = tmp_path / f"{name}.plan"
        record = build.build(resolve("zip-tiny"), path, flavor="rtx", batches=(1,), sizes=(32,), targets=targets)
        made.append((path.read_bytes(), record["plan"]["targets"]))
    assert made[0] == made[1]


def test_a_missing_or_ambiguous_flavor_is_refused(monkeypatch):
    assert "rtx" in flavor.installed()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not usable here.*zipsdk\[gpu\]"):
        flavor.runtime("trt")
    monkeypatch.setattr(request, "installed", list)
    with pytest.raises(MissingDependencyError, match="tensorrt"):
        build.build(resolve("zip-tiny"), "x.plan")
    monkeypatch.setattr(request, "installed", lambda: ["trt", "rtx"])
    with pytest.raises(InputError, match="choose one"):
        build.build(resolve("zip-tiny"), "x.plan")


def test_classic_tensorrt_takes_no_targets():
    with pytest.raises(InputError, match="builds for the GPU that is present"):
        request._check_targets(types.SimpleNamespace(), "trt", ["sm86"])


def test_the_commands_build_and_info(tmp_path, capsys):
    out = tmp_path / "z.plan"
    command = ["build", "zip-tiny", "-o", str(out), "--image-size", "32", "--target", "sm86", "--batch", "1,2"]
    assert cli.main(command) == 0
    assert "for sm86; batches up to 2, sides 32 to 32" in capsys.readouterr().out
    assert cli.main(command) == 2 and "a file that exists" in capsys.readouterr().err
    assert cli.main(["build", "zip-tiny", "-o", str(tmp_path / "z.onnx")]) == 2
    assert "ends in .plan" in capsys.readouterr().err
    assert cli.main(["info", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["runs"]["targets"] == ["sm86"] and shown["spec"]["image_size"] == 32
    assert shown["hash"] == "matches its sidecar"


def test_a_model_quantized_for_cpus_is_refused(tmp_path):
    with pytest.raises(ModelError, match="quantized for ONNX Runtime on CPUs"):
        build.build(resolve("zip-tiny-int8"), tmp_path / "x.plan", flavor="rtx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("capability", "ok"), [((7, 5), False), ((8, 6), True), ((9, 0), False), ((12, 0), True)])
def test_doctor_checks_that_tensorrt_rtx_supports_the_gpu(monkeypatch, capability, ok):
    monkeypatch.setattr(doctor, "_capability", lambda: 10 * capability[0] + capability[1])
    (check,) = [line for line in doctor._tensorrt(True) if line.name == "TensorRT-RTX"]
    assert check.ok == ok
    assert ok or f"this GPU is sm{capability[0]}{capability[1]}" in check.detail
