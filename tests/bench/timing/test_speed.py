"""bench.speed measures what it says, in rounds that can be stopped and gone on with; timings are a fake clock's."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch")

import zipsdk
from bench import speed
from bench.common import timing
from bench.common.metrics import compare
from bench.common.timing import Stopwatch, quartiles
from bench.timing import breakdown, guard_rows, peer_rows, plot, report, setup
from bench.timing.runner import Runner, State
from bench.timing.setup import LeftOut, SpeedSetup, TimingRow, Work, synthetic
from bench.victims import user
from tests.fakes.engine import FakeEngine, make_spec
from zipsdk.sampling import denoiser, sampler
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import step_table

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")
speed_torch = pytest.importorskip("bench.timing.torch_loops")

pytestmark = pytest.mark.torch


class Tiny(torch.nn.Module):
    """A noise predictor that mixes neighboring pixels a little."""

    def forward(self, x, t):
        mixed = 0.8 * x + 0.1 * torch.roll(x, 1, -1) + 0.1 * x.flip(1)
        return torch.tanh(mixed) * (0.3 + 0.6 * t[:, None, None, None] / 1000)


def draw_for(ids, side):
    def draw(t):
        step = STEP_INITIAL if t == speed_torch.FIRST else t
        return torch.from_numpy(Noise(7, np.arange(ids, dtype=np.uint64)).normal(step, side, side))

    return draw


# ---- the loops of torch


def test_schedule_is_the_sdk_s():
    for steps in (2, 4, 20):
        table = step_table(make_spec(), lam=10.0, steps=steps).steps
        rows = speed_torch.schedule(steps)
        assert [r.t for r in rows] == [s.t for s in table]
        for name in ("ab", "ab_next", "s", "d"):
            np.testing.assert_allclose([getattr(r, name) for r in rows], [getattr(s, name) for s in table], atol=1e-7)


@pytest.mark.parametrize("kind", ["authors", "eager", "scheduler"])
def test_every_loop_of_torch_is_the_purifier(kind):
    """Same weights, same noise: 8-bit images differ by one level where rounding tips. Measured: 72 dB and more."""
    images = synthetic(3, 32, seed=4)
    engine = setup.Reference(make_spec(), Tiny(), "cpu")
    wanted = zipsdk.Purifier(engine, setup.TRANSFORMS, lam=10.0, seed=7).run(images, noise_keys=np.arange(3))
    got = speed_torch.Loop(Tiny(), kind)(images, draw_for(3, 32))
    difference = compare(got, wanted)
    assert difference["largest"] <= 1
    assert difference["identical"] or difference["psnr_db"] > 65
    assert compare(speed_torch.Loop(Tiny(), kind)(images), wanted)["psnr_db"] < 45  # with other noise it is another


def test_authors_loop_keeps_every_state_on_the_host(monkeypatch):
    """What makes it theirs: two zeros on the host a step, and each x_t carried down."""
    zeros, plain = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: zeros.append(a) or plain(*a, **k))
    speed_torch.Loop(Tiny(), "authors", steps=3)(synthetic(1, 32))
    of_images = [a for a in zeros if len(a) == 6]
    assert len(of_images) == 1 + 3 * 2  # A+ of x_P, and at each step of x_t and of e
    zeros.clear()
    speed_torch.Loop(Tiny(), "eager", steps=3)(synthetic(1, 32))
    assert not zeros


@pytest.mark.parametrize("kind", ["authors", "eager", "scheduler"])
def test_the_network_gets_images_in_torch_s_usual_order_of_memory(kind):
    """Else its convolutions take other paths, and compiled ones are compiled anew between check and time."""
    seen = []

    class Watching(Tiny):
        def forward(self, x, t):
            seen.append(x.is_contiguous())
            return super().forward(x, t)

    speed_torch.Loop(Watching(), kind, steps=3)(synthetic(2, 32))
    assert seen == [True] * 3


def test_load_gives_the_weights_that_the_engine_has():
    module = speed_torch.load_unet(setup.WEIGHTS)
    from export.checkpoints import load

    x, t = torch.randn(1, 3, 32, 32), torch.tensor([500.0])
    torch.testing.assert_close(module(x, t), load(setup.WEIGHTS)[0](x, t))


# ---- rounds, samples, states


class Clock:
    """Time that passes only when something works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def row(key, seconds, clock, log, *, letter="b", rounds=3, **settings):
    def call():
        log.append(key)
        clock.now += seconds

    fields = {"label": key, "images": 1, "evaluations": 20, **settings}
    return TimingRow(key, letter, make=lambda: Work(call, {"engine": "none"}), rounds=rounds, **fields)


def runner(rows, path, clock, budget=1e9, fresh=False):
    return Runner(rows, State.open(path, fresh), path, budget, lambda label: None, clock)


def test_rows_take_turns_and_times_are_of_one_image_at_all_evaluations(tmp_path):
    clock, log = Clock(), []
    rows = [
        row("a", 2.0, clock, log),
        row("b", 6.0, clock, log, images=3, evaluations=20, measured=5, rounds=2),
    ]
    run = runner(rows, tmp_path / "s.json", clock)
    assert run.left == 5
    run.run()
    assert log == ["a", "b", "a", "b", "a"]
    assert run.state.samples == {"a": [2.0] * 3, "b": [8.0] * 2}  # 6 s for 3 images at a quarter of the evaluations
    assert run.left == 0


def test_a_short_call_is_repeated(tmp_path):
    clock, log = Clock(), []
    run = runner([row("a", 0.01, clock, log, rounds=1)], tmp_path / "s.json", clock)
    run.run()
    assert len(log) == 5 and run.state.samples["a"] == [pytest.approx(0.01)]


def test_budget_ends_the_rounds_but_never_the_first(tmp_path):
    clock, log = Clock(), []
    runner([row(k, 2.0, clock, log, rounds=9) for k in "abc"], tmp_path / "s.json", clock, budget=7).run()
    assert log == ["a", "b", "c", "a"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    clock, log, path = Clock(), [], tmp_path / "s.json"

    def rows():
        return [row(k, 1.0, clock, log, rounds=2) for k in "ab"]

    broken = rows()
    calls = broken[1].make().call

    def interrupted():
        calls()
        if len(log) > 3:
            raise KeyboardInterrupt

    broken[1].make = lambda: Work(interrupted, {})
    with pytest.raises(KeyboardInterrupt):
        runner(broken, path, clock).run()
    assert log == ["a", "b", "a", "b"]
    again = runner(rows(), path, clock)
    assert again.left == 1 and again.state.sessions == 2
    again.run()
    assert log[4:] == ["b"]
    assert {k: len(v) for k, v in json.loads(path.read_text())["samples"].items()} == {"a": 2, "b": 2}
    assert runner(rows(), path, clock, fresh=True).left == 4


def test_what_cannot_run_is_left_out_with_its_reason_and_tried_again_later(tmp_path):
    clock, log, path = Clock(), [], tmp_path / "s.json"

    def absent():
        raise LeftOut("nothing is installed")

    def broken():
        raise ValueError("a peer's own fault\nand more of it")

    lacking, peer = (row(k, 1.0, clock, log, letter="e") for k in "pq")
    lacking.make, peer.make = absent, broken
    good = row("a", 1.0, clock, log)
    run = runner([lacking, peer, good], path, clock)
    run.run()
    lines = {line["key"]: line for line in report.results(run.state, [lacking, peer, good])}
    assert lines["p"]["left_out"] == "nothing is installed"
    assert lines["q"]["left_out"] == "ValueError: a peer's own fault"
    assert "ms" not in lines["p"] and lines["a"]["ms"]["median"] == 1000
    lacking.make = good.make
    assert runner([lacking, good], path, clock).left == 3
    good.make = broken
    with pytest.raises(ValueError, match="own fault"):  # a row of ours must not hide that it fails
        runner([good], path, clock, fresh=True).run()


def test_other_arguments_have_another_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIPSDK_CACHE", str(tmp_path))

    def path(*words, engine=None):
        args = speed.settle(speed.arguments().parse_args(["--quick", *words]))
        return speed.state_path(args, SpeedSetup(args, tmp_path, engine or FakeEngine()))

    assert path() == path("--fresh", "--minutes", "9", "--progress")
    assert len({path(), path("--rounds", "2"), path("--side", "16"), path(engine=FakeEngine(make_spec(name="b")))}) == 4


def test_ratios_are_made_round_by_round():
    samples = {"x": [1.0, 2.0, 4.0], "base": [10.0, 40.0, 40.0, 1.0]}
    assert report.speedup(samples, "x", "base") == quartiles([10, 20, 10])
    assert report.speedup(samples, "x", "missing") is None


# ---- the guard


def test_flagged_places_are_as_many_as_asked_and_spread():
    for n, share, wanted in ((20, 0.05, 1), (640, 0.05, 32), (5, 0.05, 1), (4, 1.0, 4)):
        places = guard_rows.flagged_places(n, share)
        assert places.shape == (n,) and places.sum() == wanted
        assert np.ptp(np.diff(np.flatnonzero(places), prepend=-1)) <= 1


def test_simulated_flags_go_by_place_and_still_compute_the_score():
    detector = guard_rows.Simulated(places=(False, True))
    scores = np.eye(2)[[0] * 6]
    assert [detector.is_suspicious(detector.score(scores)) for _ in range(4)] == [False, True] * 2
    with pytest.raises(zipsdk.InputError):
        detector.score(scores[:3])


def test_gate_is_the_bound_where_the_guard_costs_nothing():
    """20 decisions at t_det 1 and one purification at T 30: 1 / (0.05 + 1/30) = 12."""
    samples = {"detect": [1.0], "whole-classify": [30.0], "guard-whole": [(20 + 30) / 20]}
    counts = {"guard-whole": [{"images": 20, "flagged": 1, "frames": 1, "inside": 50.0}],
              "whole-classify": [{"images": 1, "flagged": 1, "frames": 1}]}  # fmt: skip
    got = guard_rows.compare_with_bound(samples, counts, "whole", "guard-whole")
    assert got["bound"] == pytest.approx(12) and got["measured"] == pytest.approx(12)
    assert got["of_bound"]["median"] == pytest.approx(1)
    samples["guard-whole"] = [5.0]
    got = guard_rows.compare_with_bound(samples, counts, "whole", "guard-whole")
    assert got["bound"] == pytest.approx(12) and got["measured"] == pytest.approx(6)
    assert got["of_bound"]["median"] == pytest.approx(0.5)


def test_gate_knows_how_full_the_frames_were():
    """A frame of 4 costs 40 however full: 10 an image where the guard fills it, 40 where one is alone on it."""
    samples = {"detect": [1.0], "tiled-classify": [40.0], "guard-tiled": [1 + 40 / 8]}
    counts = {"guard-tiled": [{"images": 8, "flagged": 4, "frames": 1, "poisoned": 2, "poisoned_flagged": 2,
                               "inside": 48.0}],
              "tiled-classify": [{"images": 1, "flagged": 1, "frames": 1}]}  # fmt: skip
    got = guard_rows.compare_with_bound(samples, counts, "tiled", "guard-tiled")
    assert got["purify_ms"] == pytest.approx(10e3) and got["of_bound"]["median"] == pytest.approx(1)
    assert got["true_positive_rate"] == 1 and got["false_positive_rate"] == pytest.approx(2 / 6)


def opened_guard_rows(tmp_path, classify, attack):
    args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", "--decisions", "40"]))
    guard = guard_rows.GuardRows(SpeedSetup(args, tmp_path, FakeEngine()))
    guard.opened = guard_rows.OpenedClassifier(classify, {}, attack)
    return {row.key: row for row in guard.rows()}


def test_with_a_trigger_the_detector_decides_and_is_judged(tmp_path):
    """Black images keep their label when they are multiplied; the sum of the others' pixels does not."""

    def by_sum(images):
        return np.eye(10)[images.reshape(len(images), -1).sum(1, dtype=int) % 10]

    black = SimpleNamespace(apply=np.zeros_like)
    rows = opened_guard_rows(tmp_path, by_sum, black)
    counted = rows["guard-whole"].make().call()
    assert counted["images"] == 20 and counted["poisoned"] == counted["poisoned_flagged"] == 1
    assert 1 <= counted["flagged"] < 10 and counted["frames"] == counted["flagged"]
    counted = rows["guard-tiled"].make().call()
    assert counted["images"] == 40 and counted["poisoned"] == counted["poisoned_flagged"] == 2
    assert counted["frames"] == -(-counted["flagged"] // 4)
    everything = rows["guard-tiled-all"].make().call()
    assert everything.pop("inside") > 0
    assert everything == {"images": 4, "flagged": 4, "frames": 1}


def test_what_the_guard_calls_is_timed_and_the_guard_itself_is_not(tmp_path, monkeypatch):
    """A clock that only the classifier moves: 20 images in one call each, and one purified."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def slow(images):
        now[0] += 0.5
        return np.eye(10)[np.zeros(len(images), int)]

    counted = opened_guard_rows(tmp_path, slow, None)["guard-whole"].make()
    assert counted.call()["inside"] == counted.call()["inside"] == pytest.approx(21 * 0.5)


def test_a_guard_without_labels_is_no_measurement(tmp_path):
    rows = opened_guard_rows(tmp_path, lambda images: np.full((len(images), 2), np.nan), None)
    with pytest.raises(zipsdk.EngineError, match="no label"):
        rows["guard-whole"].make().call()


def test_our_own_classifier_is_torch_s(tmp_path):
    args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", "--architecture", "small"]))
    bench = SpeedSetup(args, tmp_path, FakeEngine())
    guard = guard_rows.GuardRows(bench)
    row = guard.rows()[0]
    work = row.make()
    assert row.label == "classifier alone, small, 1 at once"
    assert work.call().shape == (1, 10) and work.call().sum() == pytest.approx(1)
    assert work.runs == {"engine": f"torch {torch.__version__.split('+')[0]}, eager", "providers": ["cpu"],
                         "threads": torch.get_num_threads()}  # fmt: skip
    assert guard.describe()["classifier"] == {"classifier": "small", "weights": "random"}


def test_without_a_gpu_for_torch_only_the_user_s_classifier_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in ([], ["--classifier", "numpy:asarray"]):
        args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", *words]))
        bench = SpeedSetup(args, tmp_path, FakeEngine())
        bench.where = "cuda"
        row = guard_rows.GuardRows(bench).rows()[0]
        if words:
            assert row.make().runs == {"engine": "a Python function"}
        else:
            with pytest.raises(LeftOut, match="no CUDA"):
                row.make()


# ---- peers


@pytest.mark.parametrize(("words", "passes"), [(["--quick"], 10), ([], 50)])
def test_bdmae_makes_the_passes_that_its_row_says(tmp_path, monkeypatch, words, passes):
    from bench.defenses import vit_mae

    class Restorer:
        side, grid, calls = 32, 8, 0

        def __call__(self, images, hidden):
            self.calls += 1
            return images

        def describe(self):
            return {}

    restorer = Restorer()
    monkeypatch.setattr(vit_mae, "random_vit_mae", lambda where: restorer)
    bench = SpeedSetup(speed.settle(speed.arguments().parse_args(words)), tmp_path, FakeEngine())
    row = next(r for r in peer_rows.peers(bench, lambda p: np.eye(2)[[0] * len(p)]) if r.key == "bdmae")
    work = row.make()
    work.call()
    assert restorer.calls == row.measured == passes and row.evaluations == 50


def test_diffusion_peers_make_the_evaluations_that_their_rows_say(tmp_path):
    engine = FakeEngine()
    args = speed.settle(speed.arguments().parse_args(["--frame", "64", "--peer-steps", "7"]))
    bench = SpeedSetup(args, tmp_path, engine)
    rows = [r for r in peer_rows.peers(bench, lambda p: p) if r.letter == "f"]
    assert {r.key: r.evaluations for r in rows} == {"diffpure": 150, "ddnm": 100, "sampdetox": 140}
    for r in rows:
        work = r.make()
        engine.calls.clear()
        work.call()
        assert len(engine.calls) == r.measured == 7
        assert {shape for shape, _ in engine.calls} == {(1, 3, 64, 64)}


# ---- parts and start-up


def test_stopwatch_counts_nothing_twice():
    clock = Clock()
    watch = Stopwatch(clock)

    def inner():
        clock.now += 2

    def outer():
        clock.now += 1
        watch.timed("UNet", inner)()
        clock.now += 4

    clock.now += 100  # between the parts: nobody's
    watch.timed("step", outer)()
    clock.now += 100
    assert watch.seconds["step"] == 5 and watch.seconds["UNet"] == 2
    assert sum(watch.seconds.values()) == 7


def test_parts_add_up_and_leave_everything_as_it_was(tmp_path):
    before = sampler.sample, Noise.normal, denoiser.TiledDenoiser.__call__
    engine = FakeEngine()
    got = breakdown.overhead(engine, synthetic(4, 32), 64, 1, steps=2)
    assert set(got["ms"]) == set(breakdown.PARTS) and all(v > 0 for v in got["ms"].values())
    assert 0 < got["not_unet"] < 1
    assert [shape for shape, _ in engine.calls] == [(1, 3, 64, 64)] * 3  # one to warm up, two evaluations
    assert before == (sampler.sample, Noise.normal, denoiser.TiledDenoiser.__call__)


def test_start_times_a_fresh_process_and_says_why_it_failed():
    got = breakdown.start("import json, time; print(json.dumps({'run': 0.5, 'done': time.time()}))")
    assert got["run"] == 0.5 and got["first"] > 0
    with pytest.raises(RuntimeError, match="no such model here"):
        breakdown.start("raise SystemExit('no such model here')")


# ---- the whole command


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
        assert check["evaluations"] == 2
        if key in ("eager", "authors"):  # the fake engine is no torch module, so only these have their own weights
            assert check["identical"] or check["psnr_db"] > 60
    assert lines["whole"]["measured_evaluations"] == 2 and lines["whole"]["evaluations"] == 20
    assert lines["whole-fast"]["evaluations"] == 4
    assert set(record["gates"]) == {"guard-whole", "guard-whole-all", "guard-tiled", "guard-tiled-all"}
    assert record["gates"]["guard-whole"]["flagged_share"] == 0.05
    assert record["gates"]["guard-whole-all"]["flagged_share"] == 1
    assert record["guard"]["flags"] == "simulated: there is no data set"
    assert record["overhead"]["evaluations"] == 20
    assert {"commit", "versions", "machine", "command"} <= record.keys()
    assert all(c["met"] in (True, False) for c in record["claims"])
    for name in ("tiny", "tiny-parts"):
        assert (small.out / f"{name}.png").stat().st_size > 10_000
        assert (small.out / f"{name}.svg").read_text().startswith("<?xml")
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
    from export.__main__ import parser

    seen = []

    def run(command, **options):
        args = parser().parse_args(command[3:])
        seen.append(args)
        assert args.random_adm and args.output == tmp_path and options["cwd"] == setup.ROOT
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
