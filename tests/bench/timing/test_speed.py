"""Run bench/speed.py on tiny models: the record, the figures and the table."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import zipsdk
from bench import speed
from bench.common.timing import quartiles
from bench.timing import guard_rows, plot, report, setup
from bench.timing.runner import Runner
from bench.timing.setup import LeftOut, SpeedSetup
from bench.victims import user
from tests.fakes.engine import FakeEngine, make_spec
from tests.fakes.torch_unet import Tiny
from zipsdk.cli import build_parser

pytestmark = pytest.mark.torch


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command on an engine of a frame of 64, with a classifier and peers that cost nothing."""
    monkeypatch.setenv("ZIPSDK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SpeedSetup, "module", Tiny())
    scores = lambda images: np.stack([p.reshape(-1)[:10].astype(float) for p in images])  # noqa: E731
    made = user.Classifier(scores, {"classifier": "made up"}, runs={"engine": "made up"})
    monkeypatch.setattr(guard_rows, "random_classifier", lambda bench, architecture: made)
    phases = {"import": quartiles([0.1]), "load": quartiles([0.1]), "run": quartiles([0.1]), "first": quartiles([0.4])}
    start = {"zipsdk": phases, "torch": phases, "sooner": quartiles([4.0]), "rounds": 1, "image": 32}
    monkeypatch.setattr(speed, "startup", lambda *a, **k: start)

    def run(*words, engine=None):
        quick = ["--quick", "--frame", "64", "--rounds", "2", "--decisions", "20", "--name", "tiny"]
        return speed.main([*quick, "--out", str(tmp_path / "out"), *words], engine or FakeEngine())

    return SimpleNamespace(run=run, out=tmp_path / "out", states=tmp_path / "cache" / "speed")


def test_the_command_leaves_a_record_figures_and_a_table(small, capsys):
    assert small.run("--rows", "abcdfgp") == 0
    record = json.loads((small.out / "tiny.json").read_text())
    lines = {line["key"]: line for line in record["rows"]}
    assert {"whole", "tiled", "whole-fast", "tiled-fast", "own-1", "own-4", "authors", "eager", "scheduler",
            "classify", "detect", "guard-whole", "guard-whole-all", "guard-tiled", "guard-tiled-all", "diffpure",
            "ddnm", "sampdetox"} <= lines.keys()  # fmt: skip
    for line in lines.values():
        assert "left_out" not in line, line
        assert line["ms"]["low"] <= line["ms"]["median"] <= line["ms"]["high"]
        assert line["runs"]["engine"]
        assert line["over_b"] and line["over_g"]
    for key in ("whole", "tiled", "own-1", "own-4", "eager", "authors"):
        check = lines[key]["check"]
        assert check["total_steps"] == 2
        if key in ("eager", "authors"):  # the fake engine is no torch module, so only these have their own weights
            assert check["identical"] or check["psnr_db"] > 60
    assert lines["whole"]["measured_steps"] == 2 and lines["whole"]["total_steps"] == 20
    assert lines["whole-fast"]["total_steps"] == 4
    assert set(record["gates"]) == {"guard-whole", "guard-whole-all", "guard-tiled", "guard-tiled-all"}
    assert record["gates"]["guard-whole"]["flagged_share"] == 0.05
    assert record["gates"]["guard-whole-all"]["flagged_share"] == 1
    assert record["guard"]["flags"] == "simulated: there is no data set"
    assert record["overhead"]["total_steps"] == 20
    assert {"commit", "versions", "machine", "command"} <= record.keys()
    assert all(c["met"] in (True, False) for c in record["claims"])
    for name in ("tiny", "tiny-ratios", "tiny-parts"):
        assert (small.out / f"{name}.png").stat().st_size > 10_000
    assert not list(small.states.iterdir())  # what is finished is not gone on with
    out = capsys.readouterr().out
    assert "ZIP, 4 to a 64 frame" in out and "20 (2 timed, scaled)" in out and "simulated" in out
    assert "bound" in out


def test_the_rows_name_the_user_s_classifier_and_what_runs_it(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "users_own.py").write_text(
        "import numpy as np\ndef f(x):\n    return np.stack([x.mean((1, 2, 3)), 255 - x.mean((1, 2, 3))], -1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert small.run("--rows", "ad", "--classifier", "users_own:f") == 0
    record = json.loads((small.out / "tiny.json").read_text())
    lines = {line["key"]: line for line in record["rows"]}
    assert lines["classify"]["label"] == "classifier alone, users_own:f, 1 at once"
    assert lines["classify"]["runs"] == lines["detect"]["runs"] == {"engine": "a Python function"}
    assert record["guard"]["classifier"] == {"classifier": "users_own:f"}
    assert "resnet34" not in capsys.readouterr().out


def test_the_command_can_be_stopped_and_goes_on(small, capsys, monkeypatch):
    took = []
    real = Runner._time

    def stopping(self, work):
        took.append(work)
        if len(took) == 4:
            raise KeyboardInterrupt
        return real(self, work)

    monkeypatch.setattr(Runner, "_time", stopping)
    assert small.run("--rows", "bc") == 130
    assert "repeat the same command to resume" in capsys.readouterr().err
    assert not small.out.exists() and len(list(small.states.iterdir())) == 1
    assert small.run("--rows", "bc") == 0
    assert "resuming" in capsys.readouterr().err
    record = json.loads((small.out / "tiny.json").read_text())
    assert record["sessions"] == 2 and all(len(s) == 2 for s in record["seconds_per_image"].values())
    assert len(took) == 1 + sum(len(s) for s in record["seconds_per_image"].values())


def test_a_model_of_one_size_has_no_rows_at_own_size(small):
    engine = FakeEngine(make_spec(min_side=64, max_side=64))
    assert small.run("--rows", "bc", engine=engine) == 0
    keys = [line["key"] for line in json.loads((small.out / "tiny.json").read_text())["rows"]]
    assert keys == ["whole", "whole-fast", "tiled", "tiled-fast"]
    assert {shape[2:] for shape, _ in engine.calls} == {(64, 64)}


def test_without_torch_weights_the_loops_of_torch_are_left_out_and_say_so(small, monkeypatch):
    def none(self):
        raise LeftOut("there are no torch weights here for fake")

    monkeypatch.setattr(SpeedSetup, "module", property(none))
    assert small.run("--rows", "bg") == 0
    lines = {line["key"]: line for line in json.loads((small.out / "tiny.json").read_text())["rows"]}
    assert lines["whole"]["check"] == {"none": "there are no torch weights here for fake"}
    assert lines["authors"]["left_out"] == "there are no torch weights here for fake"


def test_wrong_arguments_are_told(small, capsys):
    assert small.run("--side", "24") == 3
    assert "expected a divisor of the frame of 64" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        small.run("--poisoned", "1.5")


def test_images_may_be_given(small, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "photos" / "x.png")
    args = speed.settle(speed.arguments().parse_args(["--photos", str(tmp_path / "photos")]))
    bench = SpeedSetup(args, tmp_path, FakeEngine())
    assert bench.images.shape == (1, 32, 32, 3) and (bench.some(3) == (200, 10, 10)).all()
    assert bench.source == "photos"


def test_random_adm_is_exported_once_under_the_name_that_the_export_gives(tmp_path, capsys, monkeypatch):
    seen = []

    def run(command, **options):
        args = build_parser().parse_args(command[2:])
        seen.append(args)
        assert args.random_adm and args.out == tmp_path and options["cwd"] == setup.ROOT
        (tmp_path / "adm256-32ch-random-weights-bf16.onnx").touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(setup.subprocess, "run", run)
    path = setup.export_random_adm(tmp_path, 32, "bf16")
    assert path.exists() and (seen[0].channels, seen[0].precision) == (32, "bf16")
    assert "exporting" in capsys.readouterr().err
    assert setup.export_random_adm(tmp_path, 32, "bf16") == path and len(seen) == 1
    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="no room"))
    with pytest.raises(zipsdk.InputError, match="no room"):
        setup.export_random_adm(tmp_path, 32, "fp16")


def test_numbers_read_well():
    assert [report.digits(x) for x in (0.01234, 57.84, 999.4, 1181.2, 24830)] == [
        "0.0123", "57.8", "999", "1,181", "24,830"]  # fmt: skip
    assert [plot.duration(ms) for ms in (0.5, 12.34, 2500, 90_000, 7.2e6)] == [
        "0.5 ms", "12.3 ms", "2.5 s", "1.5 min", "2 h"]  # fmt: skip


@pytest.mark.parametrize("rows", ["z", "ab z", ""])
def test_unknown_rows_are_refused(rows, capsys):
    with pytest.raises(SystemExit):
        speed.arguments().parse_args(["--rows", rows])
    assert "expected letters of abcdefgp" in capsys.readouterr().err
