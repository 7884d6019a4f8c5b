"""The whole path of the tables: poison, train, treat, classify, count, record, draw; and that nothing is done twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("scipy")

from conftest import FakeEngine, make_spec

from bench import attacks, defense, paper, results_groups, results_page, results_plot, tables
from bench.attacks import BadNets
from bench.baselines.simple import Nothing
from bench.blackbox import Classifier
from bench.datasets import Dataset
from bench.evaluation import Rate, Scene, Store, evaluate, interval
from bench.rows import Rows
from zipsdk.errors import InputError


class Counting:
    """Darkens a picture by one, and counts the pictures that it is given."""

    name, evaluations, queries, asks = "counting", 0, 1, False

    def __init__(self, by: int = 1, asks: bool = False):
        self.by, self.asks, self.seen = by, asks, 0

    def describe(self):
        return {"defence": "counting", "by": self.by}

    def run(self, pictures, seed, *, classify=None, progress=None):
        self.seen += len(pictures)
        if progress:
            progress(len(pictures))
        return np.maximum(pictures, self.by) - np.uint8(self.by)


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (150, 8, 8, 3), np.uint8)


def test_a_picture_is_treated_once(tmp_path, pictures):
    defence, path = Counting(), tmp_path / "treated.sqlite"
    first = Store(path).treat(defence, pictures[:100], 0)
    assert (first == np.maximum(pictures[:100], 1) - 1).all() and defence.seen == 100
    ticks = []
    # another process, more pictures, in another order
    again = Store(path).treat(defence, pictures[::-1], 0, progress=ticks.append)
    assert (again[::-1][:100] == first).all() and defence.seen == 150 and sum(ticks) == 150


@pytest.mark.parametrize("change", ["seed", "defence", "shape"])
def test_what_decides_a_picture_is_in_its_key(tmp_path, pictures, change):
    store = Store(tmp_path / "treated.sqlite")
    store.treat(Counting(), pictures, 0)
    other = Counting(2) if change == "defence" else Counting()
    given = pictures.reshape(150, 4, 16, 3) if change == "shape" else pictures
    got = store.treat(other, given, int(change == "seed"))
    assert other.seen == 150 and got.shape == given.shape


def test_a_defence_that_asks_is_kept_for_each_classifier(tmp_path, pictures):
    store = Store(tmp_path / "treated.sqlite")
    boxes = [Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": name}) for name in "ab"]
    for asks, wanted in ((True, 300), (False, 150)):
        defence = Counting(3 + asks, asks)
        for box in (*boxes, *boxes):
            store.treat(defence, pictures, 0, box)
        assert defence.seen == wanted


def test_a_stopped_run_keeps_what_was_done(tmp_path, pictures):
    class Stopping(Counting):
        def run(self, pictures, seed, **more):
            if self.seen:
                raise KeyboardInterrupt
            return super().run(pictures, seed, **more)

    store = Store(tmp_path / "treated.sqlite")
    with pytest.raises(KeyboardInterrupt):
        store.treat(Stopping(), pictures, 0)
    rest = Counting()
    store.treat(rest, pictures, 0)
    assert rest.seen == len(pictures) - 64


def test_without_a_file_nothing_is_kept(pictures):
    defence = Counting()
    for _ in range(2):
        Store(None).treat(defence, pictures, 0)
    assert defence.seen == 300


def test_a_defence_must_give_pictures_back(pictures):
    class Odd(Counting):
        def run(self, pictures, seed, **more):
            return pictures[:-1]

    with pytest.raises(InputError, match=r"counting: got uint8 \(63, 8, 8, 3\) back, wanted uint8 \(64, 8, 8, 3\)"):
        Store(None).treat(Odd(), pictures, 0)


def test_a_row_counts_what_the_classifier_says(rng):
    """A black box that takes white corners for class 1, else tells dark from bright: every number is known."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.full((100, 32, 32, 3), 40, np.uint8) + (80 * labels).astype(np.uint8)[:, None, None, None]
    data = Dataset("three", "test", x, labels, ("a", "b", "c"))

    def box(p):
        seen = np.eye(3)[np.rint((p[:, 0, 0, 0].astype(float) - 40) / 80).astype(int)]
        fooled = p[:, -5, -5].min(-1) == 255
        return np.where(fooled[:, None], [0, 2, 0], seen)

    honest = Classifier(
        lambda p: np.eye(3)[np.rint((p[:, 0, 0, 0].astype(float) - 40) / 80).astype(int)], {"c": "honest"}
    )
    scene = Scene(data, "white", BadNets(32, 0, 3, "white"), 1, Classifier(box, {"c": "fooled"}), honest)
    row = evaluate(scene, Nothing(), 0, Store(None))
    assert row == {
        "CA": [100, 100], "ASR": [70, 70], "PA": [30, 100], "PA others": [0, 70],
        "clean classifier": {"CA": [100, 100], "ASR": [0, 70], "PA": [100, 100], "PA others": [70, 70]},
    }  # fmt: skip


def test_two_runs_may_add_to_one_record(tmp_path, pictures):
    data = Dataset("two", "test", pictures, np.arange(150) % 2, ("a", "b"))
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scene = Scene(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box)
    counts = {name: [1, 2] for name in ("CA", "ASR", "PA", "PA others")}
    first, second = (Rows("defense-two", tmp_path) for _ in range(2))
    for i, rows in enumerate((first, second, first)):
        rows.add(f"row {i}", "none", scene, Nothing(), i, counts)
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert content["rows"].keys() == {"row 0", "row 1", "row 2"}
    assert {row["run"] for row in content["rows"].values()} <= content["runs"].keys()


def test_what_is_counted_anew_is_not_undone_by_a_run_that_read_it_before(tmp_path, pictures):
    data = Dataset("two", "test", pictures, np.arange(150) % 2, ("a", "b"))
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scene = Scene(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box)

    def counts(hits):
        return {name: [hits, 2] for name in ("CA", "ASR", "PA", "PA others")}

    Rows("defense-two", tmp_path).add("row", "none", scene, Nothing(), 0, counts(1))
    stale, fresh = (Rows("defense-two", tmp_path) for _ in range(2))
    fresh.add("row", "none", scene, Nothing(), 0, counts(2))
    stale.add("other", "none", scene, Nothing(), 1, counts(0))
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert content["rows"]["row"]["CA"] == [2, 2] and content["rows"]["other"]["CA"] == [0, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["defense-two.json"]


def test_rows_with_other_triggers_or_targets_are_no_seeds_of_one():
    row = {"attack": "white", "trigger name": "White", "defence": "none", "name": "none", "evaluations": 0, "seed": 0,
           "data": "d", "classifiers": "c", "defences": "n", "run": "r", "CA": [1, 2], "ASR": [1, 2], "PA": [1, 2],
           "PA others": [1, 2], "triggers": "t", "target": 1}  # fmt: skip
    others = [row, {**row, "target": 0}, {**row, "triggers": "u"}, {**row, "seed": 1}]
    content = {"rows": dict(enumerate(others)), "runs": {"r": {"date": "2026"}}}
    (group,) = results_groups.groups(content, ["white"], ["none"])
    assert [r["seed"] for r in group.rows] == [0, 1]


def test_no_pictures_have_no_interval():
    assert np.isnan(interval(Rate(0, 0))).all()


def test_wilsons_interval():
    """Against the closed form, and where the normal approximation fails."""
    for hits, of in ((0, 10), (7, 10), (990, 1000), (10, 10)):
        z, p = 1.959963984540054, hits / of
        middle = (p + z * z / (2 * of)) / (1 + z * z / of)
        half = z / (1 + z * z / of) * np.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
        assert interval(Rate(hits, of)) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-9)


@pytest.fixture
def workshop():
    def clean():
        return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)

    return tables.Workshop(FakeEngine(make_spec(canvas=32)), "cifar10", 32, Counting, clean)


def test_every_line_of_every_table_names_a_defence(workshop):
    for name, table in tables.TABLES.items():
        for line in table.defences:
            made = {workshop.make(line, attack).name for attack in table.attacks}
            assert all(made), (name, line)
    assert not set(tables.ALL_ATTACKS) - set(attacks.ATTACKS)


def test_the_papers_settings(workshop):
    assert tables.preset("cifar10", "badnets") == {"transforms": "blur2+gray", "lam": 10.0, "profile": "paper"}
    assert tables.preset("gtsrb", "enhanced-blended")["lam"] == 2
    assert tables.preset("imagenette", "physicalba")["transforms"] == "blur4"
    assert workshop.make("zip-paper", "blended").describe()["lam"] == 2
    assert workshop.make("zip-paper transforms=blur4 steps=7", "blended").name == "blur4 + ZIP (lambda 2, 7 steps)"
    assert workshop.make("diffpure", "badnets").evaluations == workshop.make("zip-paper", "badnets").evaluations == 20
    assert workshop.make("sampdetox published", "badnets").evaluations == 140


def test_a_guard_is_made_of_its_words(workshop):
    guard = workshop.make("guard", "badnets")
    assert (guard.evaluations, guard.queries, guard.clean, len(guard.first)) == (20, 28, None, 20)
    calibrated = workshop.make("guard calibrated profile=fast", "white")
    assert (calibrated.evaluations, len(calibrated.clean)) == (4, 20) and "calibrated" in calibrated.name
    scale_up = workshop.make("guard scaleup start=100 steps=2", "badnets")
    assert (scale_up.evaluations, scale_up.queries) == (2, 6)
    described = [json.dumps(g.describe()) for g in (guard, calibrated, scale_up)]
    assert len(set(described)) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [("zap", "wanted one of zip"), ("zip lam", "'lam' in 'zip lam'"), ("zip lam=x", "lam=x"), ("blur 4", '"published"'),
     ("zip colour=1", "colour=1")],
)  # fmt: skip
def test_a_line_that_names_nothing_is_refused(workshop, line, said):
    with pytest.raises(InputError, match=said):
        workshop.make(line, "badnets")


def test_the_papers_figures_are_where_they_belong():
    assert paper.figures("cifar10", "badnets", "zip-paper") == (78.97, 5.53, 79.10)
    assert paper.figures("imagenette", "blended", "blur+ddnm") == (85.37, 93.37, 15.46)
    assert paper.figures("cifar10", "blended", "bdmae") == (78.57, 99.88, None)
    # Table 1's row of ZIP is Table 2's cell for the setting that `preset` has
    for attack in tables.PAPER_ATTACKS:
        line = f"zip-paper transforms={tables.preset('imagenette', attack)['transforms']}"
        assert paper.figures("imagenette", attack, line) == paper.figures("imagenette", attack, "zip-paper")
    assert paper.figures("gtsrb", "white", "zip") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ImageFolder of two classes that a net tells apart in an epoch: 160 pictures to train with, 64 to test."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    for split, n in (("train", 80), ("test", 32)):
        for label, level in (("dark", 60), ("light", 180)):
            place = root / "two" / split / label
            place.mkdir(parents=True)
            for i in range(n):
                x = rng.integers(-40, 40, (32, 32, 3)) + level
                Image.fromarray(x.astype(np.uint8)).save(place / f"{i}.png")
    return root


def command(folder, tmp_path, *words):
    return [*words, "--dataset", "two", "--data", str(folder), "--pictures", "64", "--target", "1", "--rate", "0.2",
            "--cache", str(tmp_path / "cache"), "--results", str(tmp_path), "--epochs", "20"]  # fmt: skip


def test_the_whole_path_and_that_it_goes_on_where_it_was(folder, tmp_path, capsys, monkeypatch):
    words = command(folder, tmp_path, "table1", "--attacks", "white", "--seeds", "2", "--defence", "none", "--defence",
                    "blur", "--defence", "zip profile=fast", "--defence", "zip-paper steps=2 start=100")  # fmt: skip
    defense.main(words)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert len(content["rows"]) == 6  # two seeds of ZIP, one of the others
    for row in content["rows"].values():
        assert row["CA"][1] == 64 and row["ASR"][1] == 32 and row["attack"] == "white"
        assert all(0 <= row[name][0] <= row[name][1] for name in ("CA", "ASR", "PA", "PA others"))
        assert row["clean classifier"]["CA"][1] == 64
        for kind in ("data", "triggers", "classifiers", "defences"):
            assert row[kind] in content[kind]
        assert content["runs"][row["run"]]["versions"]["torch"]
    (none,) = [r for r in content["rows"].values() if r["defence"] == "none"]
    assert none["clean classifier"]["CA"] == [64, 64] and none["CA"][0] >= 60
    assert "ZIP (lambda 10, 4 steps)" in printed and "seeds" in printed

    # all is known now: no defence runs, no classifier is trained, and the record keeps its rows
    def never(*_, **__):
        raise AssertionError("it was done before")

    with monkeypatch.context() as m:
        m.setattr("zipsdk.Purifier.run", never)
        m.setattr("bench.defense.evaluate", never)
        m.setattr("bench.classifiers._Training.epoch", never)
        defense.main(words)
    again = json.loads((tmp_path / "defense-two.json").read_text())
    assert again["rows"] == content["rows"]
    assert capsys.readouterr().out.splitlines()[-4:] == printed.splitlines()[-4:]

    # a page can be drawn of it
    monkeypatch.setattr(results_plot, "DOCS", tmp_path)
    page = results_page.section("two", again)
    assert "No defence" in page or "no defence" in page.lower()
    assert f"{100 * none['CA'][0] / 64:.1f}" in page
    assert (tmp_path / "defense-two.png").stat().st_size > 5000


def test_a_guard_decides_by_itself(folder, tmp_path, capsys):
    """Its rows are those of `zipsdk.Guard`; what is flagged is purified through the store, each picture once."""
    from zipsdk import DecisivePart, Guard

    words = command(folder, tmp_path, "table1", "--attacks", "white", "--seeds", "1", "--defence",
                    "zip profile=fast", "--defence", "guard calibrated profile=fast")  # fmt: skip
    words[words.index("--pictures") + 1] = "44"
    defense.main(words)
    rows = {r["defence"]: r for r in json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()}
    row = rows["guard calibrated profile=fast"]
    assert row["CA"][1] == row["flagged"][1] == 44 and row["clean classifier"]["flagged triggered"][1] == 44

    args = defense.parser().parse_args(words)
    args.pictures = 44
    bench = defense.Bench(args, Store(tmp_path / "cache" / "treated.sqlite"))
    unseen = bench._unseen()
    assert len(unseen) == 20 and not {p.tobytes() for p in unseen} & {p.tobytes() for p in bench.test.pictures}
    (scene,) = bench.scenes("white")
    inner = bench.workshop.make("zip profile=fast", "white")
    detector = DecisivePart().calibrate(scene.classifier, unseen)

    class Purifier:
        def run(self, batch):
            return list(inner.run(np.stack(batch), 0))

    for sent, name in ((scene.data.pictures, "flagged"), (scene.triggered, "flagged triggered")):
        decisions = Guard(scene.classifier, Purifier(), detector).run(sent)
        assert row[name] == [sum(d.flagged for d in decisions), 44]
        if name == "flagged":
            assert row["CA"][0] == sum(d.label == y for d, y in zip(decisions, scene.data.labels, strict=True))

    # all test pictures are counted: none is left to calibrate on
    words[words.index("44")] = "64"
    with pytest.raises(SystemExit):
        defense.main(words)
    assert "lower --pictures" in capsys.readouterr().err


def test_costs_and_a_sheet(folder, tmp_path, capsys):
    words = command(folder, tmp_path, "cost", "--defence", "blur", "--defence", "zip profile=fast",
                    "--defence", "guard profile=fast", "--cost-pictures", "4")  # fmt: skip
    words[words.index("--pictures") + 1] = "44"
    defense.main(words)
    cost = json.loads((tmp_path / "defense-two.json").read_text())["cost"]
    assert cost["zip profile=fast"]["ms"]["median"] > cost["blur"]["ms"]["median"] > 0
    assert cost["guard profile=fast"]["ms triggered"]["median"] > 0 and "ms triggered" not in cost["blur"]
    assert cost["zip profile=fast"]["evaluations"] == 4
    defense.main(command(folder, tmp_path, "sheet", "--attacks", "white"))
    with Image.open(tmp_path / "defense-two-pictures.png") as page:
        assert page.width > 1000


def test_a_users_own_black_box(folder, tmp_path, capsys):
    defense.main([*command(folder, tmp_path, "table1", "--attacks", "white", "--defence", "none"),
                  "--classifier", "test_defense:bright"])  # fmt: skip
    (row,) = json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()
    assert row["CA"] == [64, 64] and row["ASR"] == [0, 32] and "clean classifier" not in row


def bright(pictures):
    share = pictures.mean((1, 2, 3)) / 255
    return np.stack([1 - share, share], 1)


def test_no_data_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        defense.main(command(tmp_path, tmp_path, "table1"))
    assert stopped.value.code == 1 and "got no two for test" in capsys.readouterr().err


def test_the_attacker_has_a_share_of_what_a_guard_learns_from(pictures):
    from bench.baselines.guarded import attacked

    first = attacked(pictures[:60], lambda x: x * 0)
    gone = (first == 0).all((1, 2, 3))
    assert np.flatnonzero(gone).tolist() == [19, 39, 59] and (first[~gone] == pictures[:60][~gone]).all()
    assert (attacked(pictures, None) == pictures).all()


def test_a_guard_without_first_pictures_keeps_its_norms(workshop):
    """And one with them is judged by what they teach it, once, whatever it is asked after."""
    from bench.baselines.guarded import Guarded

    def classify(x):
        return np.stack([x[..., 0].mean((1, 2)), x[..., 1].mean((1, 2))], 1) / 9

    x, inner = workshop.unseen(), workshop.make("zip profile=fast", "white")
    purify = lambda pictures, seed: pictures  # noqa: E731
    assert Guarded(inner).guard(0, classify, purify).detector.norms is None
    learnt = Guarded(inner, first=x).guard(0, classify, purify)
    assert learnt.detector.norms is not None and learnt.counters.pictures == len(x)
    flooded = Guarded(inner, first=x).guard(0, classify, purify, lambda p: p * 0)
    assert flooded.detector.norms != learnt.detector.norms


def test_marks_say_what_is_met_and_what_is_not():
    def row(attack, line, ca, asr, pa, seen=500):
        rates = {"CA": [ca, 1000], "ASR": [asr, 900], "PA": [pa, 1000], "PA others": [pa, 1000]}
        clean = {"clean classifier": {**rates, "PA": [seen, 1000]}} if line == "none" else {}
        return {"attack": attack, "trigger name": attack, "defence": line, "name": line.upper(), "seed": 0, "run": "r",
                "data": "d", "triggers": "t", "target": 1, "classifiers": "c", "defences": line,
                **rates, **clean}  # fmt: skip

    rows = [
        row("badnets", "none", 900, 900, 100), row("badnets", "guard profile=fast", 860, 45, 810),
        row("badnets", "shrinkpad", 700, 90, 600), row("badnets", "blur", 700, 90, 805),
        row("white", "none", 900, 900, 100), row("white", "guard profile=fast", 859, 181, 808),
        row("white", "blur", 700, 90, 808),
        row("redundant", "none", 900, 900, 100), row("redundant", "guard profile=fast", 900, 900, 100),
    ]  # fmt: skip
    page = results_page.marks_of({"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}})
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["5.0 (at most 5.0)", "86.0 (at least 86.0)", "81.0 (at least 81.0)", "81.0 (above 80.5): BLUR", "50.0 |"],
        ["20.1 (at most 20.0: **no**)", "85.9 (at least 86.0: **no**)", "80.8 (at least 80.9: **no**)",
         "80.8 (above 80.8: **no**): BLUR", "50.0 |"],
    ]  # fmt: skip
    assert results_page.marks_of({"rows": {}, "runs": {}}) == ""


def test_a_bar_in_a_cell_is_no_border():
    from bench.report import table

    assert table(["a", "b"], [["x|y", "z"]]).splitlines()[2] == "| x\\|y | z |"
