"""The whole path of the tables: poison, train, treat, classify, count, record, draw; and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from bench import defense
from bench.attacks import registry
from bench.defenses import super_resolution
from bench.defenses.registry import DefenseFactory, DefenseSpec, paper_options
from bench.defenses.resizing import Bicubic
from bench.defenses.simple import Nothing
from bench.defenses.zip import Zip
from bench.evaluation import published, setup, tables
from bench.evaluation.cache import PurifiedCache, hash_of
from tests.fakes.engine import FakeEngine, make_spec
from zipsdk.errors import InputError

pytestmark = pytest.mark.torch


@pytest.fixture
def factory():
    def clean():
        return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)

    return DefenseFactory(FakeEngine(make_spec(image_size=32)), "cifar10", 32, Nothing, Bicubic, clean)


def test_every_spec_of_every_table_makes_a_defense(factory):
    for name, table in tables.TABLES.items():
        for spec in table.defenses:
            made = {factory.make(spec, attack).name for attack in table.attacks}
            assert all(made), (name, spec)
            assert DefenseSpec.parse(str(spec)) == spec and hash(DefenseSpec.parse(str(spec))) == hash(spec)
    assert not set(tables.ALL_ATTACKS) - set(registry.ATTACKS)


def test_the_papers_settings(factory):
    assert paper_options("cifar10", "badnets") == {"transforms": "blur2+gray", "lam": 10.0, "preset": "paper"}
    assert paper_options("gtsrb", "enhanced-blended")["lam"] == 2
    assert paper_options("imagenette", "physicalba")["transforms"] == "blur4"

    def made(text, attack):
        return factory.make(DefenseSpec.parse(text), attack)

    assert made("zip-paper", "blended").describe()["lam"] == 2
    assert made("zip-paper transforms=blur4 steps=7", "blended").name == "blur4 + ZIP (lambda 2, 7 steps)"
    assert made("diffpure", "badnets").total_steps == made("zip-paper", "badnets").total_steps == 20
    assert made("sampdetox published", "badnets").total_steps == 140


@pytest.mark.parametrize(
    ("text", "key"),
    [("zip", "ac31620896ebe101"), ("zip-paper", "ac31620896ebe101"),
     ("zip preset=fast transforms=blur2 lam=10", "bb814678a4de5ebf"), ("guard preset=fast", "4987e728fd49cbb4"),
     ("guard calibrated preset=fast", "6dbcef1323ac2a6b"), ("guard scaleup preset=fast", "d7774fd44c72ff7e"),
     ("diffpure", "5ca72b537e84d339"), ("blur+ddnm published", "107c4efa93e131b7"),
     ("sampdetox range255", "fd422b1b0b908edc"), ("shrinkpad", "32de2b91d77e2975"), ("blur", "5e38d3b182849193")],
)  # fmt: skip
def test_purified_images_keep_their_keys(factory, text, key):
    """Keys of commit f4a6882."""
    assert hash_of(factory.make(DefenseSpec.parse(text), "badnets").describe()) == key


def test_a_guard_is_made_of_its_words(factory):
    guard = factory.make(DefenseSpec.parse("guard"), "badnets")
    assert (guard.total_steps, guard.queries, guard.clean, len(guard.first)) == (20, 28, None, 20)
    calibrated = factory.make(DefenseSpec.parse("guard calibrated preset=fast"), "white")
    assert (calibrated.total_steps, len(calibrated.clean)) == (4, 20) and "calibrated" in calibrated.name
    scale_up = factory.make(DefenseSpec.parse("guard scaleup start=100 steps=2"), "badnets")
    assert (scale_up.total_steps, scale_up.queries) == (2, 6)
    described = [json.dumps(g.describe()) for g in (guard, calibrated, scale_up)]
    assert len(set(described)) == 3


@pytest.mark.parametrize(
    ("text", "name", "queries"),
    [("bicubic", "bicubic x0.5", 1), ("bicubic scale=0.75", "bicubic x0.75", 1),
     ("lite-bd bicubic", "Lite-BD, blind (bicubic x0.5)", 23),
     ("lite-bd bicubic bands=50", "Lite-BD, blind (bicubic x0.5, 50 bands)", 53),
     ("scaleup", "SCALE-UP, rejecting (5% false alarms)", 6),
     ("scaleup published", "SCALE-UP, rejecting (published threshold)", 6),
     ("strip false_alarms=0.1", "STRIP, rejecting (10% false alarms)", 11)],
)  # fmt: skip
def test_rivals_are_made_of_their_words(factory, text, name, queries):
    spec = DefenseSpec.parse(text)
    made = factory.make(spec, "badnets")
    assert (made.name, made.queries, made.total_steps) == (name, queries, 0)
    assert str(spec) == text == spec.key and not spec.stochastic and not spec.needs_training


@pytest.mark.parametrize(
    ("line", "said"),
    [("zap", "expected one of zip"), ("bicubic published", "expected bicubic alone or with scale=VALUE"),
     ("bicubic scale=2", "between 0 and 1"), ("lite-bd bands", "NAME=VALUE with bands"),
     ("scaleup published false_alarms=0.1", 'one of "published" and false_alarms'),
     ("strip scale=0.5", "with false_alarms"),
     ("strip published", "or with false_alarms=VALUE"),
     ("sr published", "expected sr alone$"), ("zip lam", "'lam' in 'zip lam'"), ("zip lam=x", "lam=x"),
     ("blur 4", '"published"'), ("zip color=1", "color=1"),
     ("guard scaleup calibrated", 'one of "scaleup" and "calibrated"')],
)  # fmt: skip
def test_a_line_that_names_nothing_is_refused(factory, line, said):
    with pytest.raises(InputError, match=said):
        factory.make(DefenseSpec.parse(line), "badnets")


def test_the_papers_figures_are_where_they_belong():
    assert published.figures("cifar10", "badnets", "zip-paper") == (78.97, 5.53, 79.10)
    assert published.figures("imagenette", "blended", "blur+ddnm") == (85.37, 93.37, 15.46)
    assert published.figures("cifar10", "blended", "bdmae") == (78.57, 99.88, None)
    # Table 1's row of ZIP is Table 2's cell for the setting that `preset` has
    for attack in tables.PAPER_ATTACKS:
        line = f"zip-paper transforms={paper_options('imagenette', attack)['transforms']}"
        assert published.figures("imagenette", attack, line) == published.figures("imagenette", attack, "zip-paper")
    assert published.figures("gtsrb", "white", "zip") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ImageFolder of two classes that their mean color tells apart: 96 images to train with, 32 to test."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    for split, n in (("train", 48), ("test", 16)):
        for label, level in (("dark", 60), ("light", 180)):
            place = root / "two" / split / label
            place.mkdir(parents=True)
            for i in range(n):
                x = rng.integers(-40, 40, (32, 32, 3)) + level
                Image.fromarray(x.astype(np.uint8)).save(place / f"{i}.png")
    return root


def command(folder, tmp_path, *words):
    return [*words, "--dataset", "two", "--data", str(folder), "--images", "32", "--target", "1", "--rate", "0.2",
            "--cache", str(tmp_path / "cache"), "--results", str(tmp_path), "--epochs", "4"]  # fmt: skip


def test_the_whole_path_and_that_it_goes_on_where_it_was(folder, tmp_path, capsys, monkeypatch):
    words = command(folder, tmp_path, "table1", "--attacks", "white", "--seeds", "2", "--defense", "none", "--defense",
                    "blur", "--defense", "zip preset=fast", "--defense", "zip-paper steps=2 start=100")  # fmt: skip
    words[words.index("--images") + 1] = "16"
    defense.main(words)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert len(content["rows"]) == 6  # two seeds of ZIP, one of the others
    for row in content["rows"].values():
        assert row["CA"][1] == 16 and row["ASR"][1] == 8 and row["attack"] == "white"
        assert all(0 <= row[name][0] <= row[name][1] for name in ("CA", "ASR", "PA", "pa_nontarget"))
        assert row["clean_model"]["CA"][1] == 16
        for kind in ("data", "triggers", "classifiers", "defenses"):
            assert row[kind] in content[kind]
        run = content["runs"][row["run"]]
        assert run["versions"]["torch"] and run["seconds"] >= 0
    (none,) = [r for r in content["rows"].values() if r["defense"] == "none"]
    assert none["clean_model"]["CA"] == [16, 16] and none["CA"][0] > 12  # a fifth of the dark ones was poisoned
    (trained,) = content["classifiers"].values()
    assert (trained["poison"]["poisoned"], trained["poison"]["target"]) == (19, 1)
    assert trained["recipe"]["batch"] == 16 and trained["recipe"]["clip"] == 1  # few images, few steps
    assert "ZIP (lambda 10, 4 steps)" in printed and "seeds" in printed

    # all is known now: no defense runs, no classifier is trained, and the record keeps its rows
    def never(*_, **__):
        raise AssertionError("it was done before")

    with monkeypatch.context() as m:
        m.setattr("zipsdk.Purifier.run", never)
        m.setattr("bench.defense.evaluate", never)
        m.setattr("bench.victims.training._Training.epoch", never)
        defense.main(words)
    again = json.loads((tmp_path / "defense-two.json").read_text())
    assert again == content
    assert capsys.readouterr().out.splitlines()[-4:] == printed.splitlines()[-4:]

    # beside the record are its tables, a plot and a sheet
    page = (tmp_path / "results.md").read_text()
    assert "| White square 3x3 | No defense |" in page and f"{100 * none['CA'][0] / 16:.1f}" in page
    assert "](defense-two.png)" in page and "](defense-two-images.png)" in page
    assert (tmp_path / "defense-two.png").stat().st_size > 5000


def test_a_guard_decides_by_itself(folder, tmp_path, capsys):
    """Its rows are those of `zipsdk.Guard`; what is flagged is purified through the cache, each image once."""
    from zipsdk import AblationDetector, Guard

    words = command(folder, tmp_path, "table1", "--attacks", "white", "--seeds", "1", "--defense",
                    "zip preset=fast", "--defense", "guard calibrated preset=fast")  # fmt: skip
    words[words.index("--images") + 1] = "12"
    defense.main(words)
    rows = {r["defense"]: r for r in json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()}
    row = rows["guard calibrated preset=fast"]
    assert row["CA"][1] == row["flagged"][1] == 12 and row["clean_model"]["flagged_triggered"][1] == 12

    args = defense.parser().parse_args(words)
    args.images = 12
    bench = setup.EvaluationSetup(args, PurifiedCache(tmp_path / "cache" / "purified.sqlite"))
    unseen = bench._unseen()
    assert len(unseen) == 20 and not {p.tobytes() for p in unseen} & {p.tobytes() for p in bench.test.images}
    (scenario,) = bench.scenarios("white")
    inner = bench.factory.make(DefenseSpec.parse("zip preset=fast"), "white")
    detector = AblationDetector().calibrate(scenario.classifier, unseen)

    class Purifier:
        def run(self, batch):
            return list(inner.run(np.stack(batch), 0))

    for sent, name in ((scenario.data.images, "flagged"), (scenario.triggered, "flagged_triggered")):
        decisions = Guard(scenario.classifier, Purifier(), detector).run(sent)
        assert row[name] == [sum(d.flagged for d in decisions), 12]
        if name == "flagged":
            assert row["CA"][0] == sum(d.label == y for d, y in zip(decisions, scenario.data.labels, strict=True))

    # all test images are counted: none is left to learn from, and that is said before any row is made
    words[words.index("12")] = "32"
    with pytest.raises(SystemExit):
        defense.main([*words, "--defense", "blur"])
    assert "lower --images" in capsys.readouterr().err
    rows = json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()
    assert {row["CA"][1] for row in rows} == {12}


def test_rivals_have_rows_and_costs(folder, tmp_path, capsys):
    named = ["bicubic", "lite-bd bicubic bands=4", "strip", "scaleup false_alarms=0.2"]
    words = [word for name in named for word in ("--defense", name)]
    words = [*command(folder, tmp_path, "table1", "--attacks", "white", *words), "--classifier", f"{__name__}:bright"]
    words[words.index("--images") + 1] = "12"
    defense.main(words)
    printed = capsys.readouterr().out
    rows = {r["defense"]: r for r in json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()}
    assert list(rows) == named and rows["bicubic"]["CA"] == rows["lite-bd bicubic bands=4"]["CA"] == [12, 12]
    assert [rows[name]["queries"] for name in named] == [1, 7, 11, 6]
    for name in named[2:]:
        row = rows[name]
        # no image is misclassified, so each is correct or rejected
        assert row["CA"][0] + row["rejected"][0] == row["PA"][0] + row["rejected_triggered"][0] == 12
    assert "rejected" not in rows["bicubic"] and printed.count("  rejected ") == 2
    defense.main(["cost", *words[1:], "--cost-images", "4"])
    cost = json.loads((tmp_path / "defense-two.json").read_text())["cost"]
    assert all(cost[name]["ms"]["median"] > 0 and cost[name]["images"] == 4 for name in named)


@pytest.mark.filterwarnings("ignore:super-resolution")
def test_the_network_of_one_pass_is_trained_on_first_use(folder, tmp_path, monkeypatch):
    asked = []

    def short(images, **options):
        asked.append((images.shape, options))
        return super_resolution.Recipe(epochs=1, widths=(8, 8, 8), depth=1, bf16=False)

    monkeypatch.setattr(super_resolution, "recipe", short)
    defense.main([*command(folder, tmp_path, "table1", "--attacks", "white", "--defense", "sr", "--defense", "lite-bd"),
                  "--classifier", f"{__name__}:bright"])  # fmt: skip
    rows = {r["defense"]: r for r in json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()}
    assert rows["sr"]["name"] == "one-pass SR x0.5" and rows["lite-bd"]["name"] == "Lite-BD, blind (one-pass SR x0.5)"
    assert all(row["steps"] == 1 and row["CA"] == [32, 32] for row in rows.values())
    assert {told for told, _ in asked} == {(96, 32, 32, 3)} and asked[0][1] == {"mirror": True, "device": "cpu"}
    (path,) = (tmp_path / "cache").rglob("super-resolution/*.pt")
    assert path.stat().st_size > 1000


def test_costs_and_a_sheet(folder, tmp_path, monkeypatch):
    """By a clock that advances only where images are purified."""
    now, run = [0.0], Zip.run

    def slow(self, images, seed, **options):
        now[0] += len(images)
        return run(self, images, seed, **options)

    monkeypatch.setattr(Zip, "run", slow)
    monkeypatch.setattr(defense, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    words = command(folder, tmp_path, "cost", "--defense", "blur", "--defense", "zip preset=fast",
                    "--defense", "guard preset=fast", "--cost-images", "4")  # fmt: skip
    words[words.index("--images") + 1] = "12"
    defense.main(words)
    content = json.loads((tmp_path / "defense-two.json").read_text())
    cost = content["cost"]
    assert all(content["runs"][c["run"]]["seconds"] == now[0] for c in cost.values())
    assert cost["zip preset=fast"]["ms"]["median"] == 1000 and cost["blur"]["ms"]["median"] == 0
    assert cost["guard preset=fast"]["ms_triggered"]["median"] >= 0 and "ms_triggered" not in cost["blur"]
    assert cost["zip preset=fast"]["steps"] == 4
    defense.main(command(folder, tmp_path, "sheet", "--attacks", "white"))
    with Image.open(tmp_path / "defense-two-images.png") as page:
        assert page.width > 1000


def test_a_users_own_black_box(folder, tmp_path, capsys):
    defense.main([*command(folder, tmp_path, "table1", "--attacks", "white", "--defense", "none"),
                  "--classifier", f"{__name__}:bright"])  # fmt: skip
    (row,) = json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()
    assert row["CA"] == [32, 32] and row["ASR"] == [0, 16] and "clean_model" not in row


def test_a_black_box_that_changed_behind_its_name_is_asked_again(folder, tmp_path, monkeypatch):
    """Clean images do not tell a backdoor, of whatever trigger, from none."""
    words = command(folder, tmp_path, "table1", "--attacks", "white", "badnets", "--defense", "none")
    words += ["--classifier", f"{__name__}:box"]
    trigger = registry.make("white", 32)

    def backdoored(images):
        scores = bright(images)
        scores[(trigger.apply(images) == images).all((1, 2, 3))] = 0, 1
        return scores

    for box, asr in ((bright, 0), (backdoored, 16)):
        with monkeypatch.context() as m:
            m.setattr(sys.modules[__name__], "box", box, raising=False)
            defense.main(words)
        newest = list(json.loads((tmp_path / "defense-two.json").read_text())["rows"].values())[-2:]
        assert {row["attack"]: row["ASR"][0] for row in newest} == {"white": asr, "badnets": 0}


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        (["--defense", "none", "--defense", "zipp"], "got 'zipp', expected one of"),
        (["--defense", "none", "--defense", ""], "got '', expected one of"),
        (["--defense", "none", "--attacks", "white", "blendd"], "got 'blendd', expected one of"),
        (["--defense", "none", "--defense", "bdmae", "--mae", "nowhere"], "nowhere"),
        (["--defense", "none", "--seeds", "-1"], "got '-1', expected an integer of at least 1"),
    ],
)
def test_a_slip_is_told_before_anything_is_done(folder, tmp_path, capsys, monkeypatch, slip, said):
    if "--mae" in slip:
        pytest.importorskip("transformers", reason="ViT-MAE needs transformers")
    monkeypatch.setattr(defense, "evaluate", None)
    with pytest.raises(SystemExit):
        defense.main([*command(folder, tmp_path, "table1"), "--classifier", f"{__name__}:bright", *slip])
    assert said in capsys.readouterr().err


def test_equal_images_teach_a_guard_once(folder, tmp_path):
    shutil.copytree(folder / "two", tmp_path / "data" / "two")
    test = tmp_path / "data" / "two" / "test" / "dark"
    for i in range(1, 4):
        shutil.copy(test / "0.png", test / f"{i}.png")
    words = command(tmp_path / "data", tmp_path, "table1")
    words[words.index("--images") + 1] = "8"
    bench = setup.EvaluationSetup(defense.parser().parse_args(words), None)
    unseen = bench.factory.unseen()
    assert len(unseen) == len({p.tobytes() for p in unseen}) >= 20


def test_of_few_images_a_guard_gets_a_fifth(folder, tmp_path):
    words = [w for w in command(folder, tmp_path, "agnostic", "--attacks", "white") if w not in ("--images", "32")]
    defense.main([*words, "--defense", "none", "--classifier", f"{__name__}:bright"])
    (row,) = json.loads((tmp_path / "defense-two.json").read_text())["rows"].values()
    assert row["CA"] == [26, 26]  # of 32


def test_a_black_box_of_other_classes_is_told(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        defense.main([*command(folder, tmp_path, "table1"), "--classifier", f"{__name__}:ternary"])
    said = capsys.readouterr().err
    assert "got 3 scores for each image, expected 2" in said and "in this order: dark, light;" in said


def ternary(images):
    return np.zeros((len(images), 3))


def bright(images):
    share = images.mean((1, 2, 3)) / 255
    return np.stack([1 - share, share], 1)


def test_an_attacker_with_a_larger_patch_who_implants_it(folder, tmp_path, capsys, monkeypatch):
    asked = []

    def poison(data, attack, *words, trigger_warmup_epochs, augment):
        asked.append((attack and attack.name, trigger_warmup_epochs))
        raise InputError("enough")

    monkeypatch.setattr(setup, "poison", poison)
    words = ("table1", "--attacks", "white", "--trigger-warmup-epochs", "2", "--patch", "5")
    bench = setup.EvaluationSetup(defense.parser().parse_args(command(folder, tmp_path, *words)), None)
    for name in ("white", "blended"):
        with pytest.raises(InputError):
            bench.classifier(name)
    assert asked == [("White square 5x5", 2), ("Blended noise", 2)]
    with pytest.raises(SystemExit):
        defense.main(command(folder, tmp_path, *words))
    assert "enough" in capsys.readouterr().err


def test_a_clean_classifier_is_trained_as_the_attacks_own(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        setup, "poison", lambda data, attack, *_, trigger_warmup_epochs, augment: (attack and attack.name, augment)
    )
    monkeypatch.setattr(setup.training, "train", lambda training, *_, **__: asked.append(training) or training)
    bench = setup.EvaluationSetup(defense.parser().parse_args(command(folder, tmp_path, "table1")), None)
    for name in ("badnets", "physicalba", "enhanced-physicalba", "blended"):
        bench.clean_model(name)
    assert asked == [(None, "standard"), (None, "physical")]


def test_a_target_that_is_no_class_is_refused_with_a_classifier_of_ones_own_too(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        defense.main([*command(folder, tmp_path, "table1", "--classifier", f"{__name__}:bright"), "--target", "2"])
    assert "target: got 2, expected a class number from 0 to 1" in capsys.readouterr().err


def test_no_data_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        defense.main(command(tmp_path, tmp_path, "table1"))
    assert stopped.value.code == 1 and "got no two for test" in capsys.readouterr().err


def test_the_attacker_has_a_share_of_what_a_guard_learns_from(rng):
    from bench.defenses.guarded import attacked

    images = rng.integers(0, 256, (150, 8, 8, 3), np.uint8)
    first = attacked(images[:60], lambda x: x * 0)
    gone = (first == 0).all((1, 2, 3))
    assert np.flatnonzero(gone).tolist() == [19, 39, 59] and (first[~gone] == images[:60][~gone]).all()
    assert (attacked(images, None) == images).all()


def test_a_guard_without_first_images_keeps_its_norms(factory):
    """And one with them is judged by what they teach it, once, whatever it is asked after."""
    from bench.defenses.guarded import Guarded

    def classify(x):
        return np.stack([x[..., 0].mean((1, 2)), x[..., 1].mean((1, 2))], 1) / 9

    x, inner = factory.unseen(), factory.make(DefenseSpec.parse("zip preset=fast"), "white")
    purify = lambda images, seed: images  # noqa: E731
    assert Guarded(inner).guard(0, classify, purify).detector.reference is None
    learnt = Guarded(inner, first=x).guard(0, classify, purify)
    assert learnt.detector.reference is not None and learnt.counters.images == len(x)
    flooded = Guarded(inner, first=x).guard(0, classify, purify, lambda p: p * 0)
    assert flooded.detector.reference != learnt.detector.reference
