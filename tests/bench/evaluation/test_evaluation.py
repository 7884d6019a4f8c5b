"""An image is treated once, a row counts what the classifier says, and records lose nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from scipy.stats import binomtest

from bench.attacks.patches import BadNets
from bench.common.record import RESULTS
from bench.data.datasets import Dataset
from bench.defenses.registry import DefenseSpec
from bench.defenses.simple import Nothing
from bench.evaluation.cache import OLD_NAME, PurifiedCache, hash_of
from bench.evaluation.evaluate import Scenario, evaluate
from bench.evaluation.rates import Rate, Rates, design_effect, interval, rates
from bench.evaluation.records import Record
from bench.evaluation.results_file import ResultsFile
from bench.victims.user import Classifier
from zipsdk.errors import InputError

pytestmark = pytest.mark.torch


def rows_of_records():
    """Every committed row with its record and its key."""
    for path in sorted(RESULTS.rglob("*.json")):
        content = json.loads(path.read_text())
        for key, row in content["rows"].items() if "classifiers" in content else ():
            yield content, key, row


def test_every_committed_row_has_the_key_that_a_new_run_looks_for():
    counted_only = ("classes_with_images", "tracks")
    keys = []
    for content, key, row in rows_of_records():
        data, trigger, classifier, defense = (
            content[part][row[part]] for part in ("data", "triggers", "classifiers", "defenses")
        )
        for part, description in (("triggers", trigger), ("classifiers", classifier), ("defenses", defense)):
            assert hash_of(description) == row[part]
        data = {name: value for name, value in data.items() if name not in counted_only}
        scenario = {"data": data, "attack": row["attack"], "trigger": trigger, "target": row["target"],
                 "classifier": classifier}  # fmt: skip
        assert hash_of([DefenseSpec.parse(row["defense"]).key, scenario, defense, row["seed"]]) == key
        keys.append(key)
    assert len(keys) == 630 and hash_of(sorted(keys)) == "c4d829b07f5d0839"


@pytest.mark.parametrize(
    ("text", "key"),
    [("none", "cc7572d341394924"), ("zip preset=fast", "b6ac82cdb047637f"),
     ("zip preset=fast transforms=blur2|gray|blur2+gray|blur4+gray lam=10", "e500d26a4005fbc6")],
)  # fmt: skip
def test_rows_keep_their_keys(text, key):
    """Keys of commit f4a6882."""
    images = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), np.uint8)
    data = Dataset("two", "test", images, np.arange(150) % 2, ("a", "b"))
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scenario = Scenario(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box)
    assert ResultsFile.key(DefenseSpec.parse(text), scenario, Nothing(), 0) == key


class Counting:
    """Darkens an image by one, and counts the images that it is given."""

    name, total_steps, queries, queries_classifier = "counting", 0, 1, False

    def __init__(self, by: int = 1, queries_classifier: bool = False):
        self.by, self.queries_classifier, self.seen = by, queries_classifier, 0

    def describe(self):
        return {"defence": "counting", "by": self.by}

    def run(self, images, seed, *, classify=None, progress=None):
        self.seen += len(images)
        if progress:
            progress(len(images))
        return np.maximum(images, self.by) - np.uint8(self.by)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (150, 8, 8, 3), np.uint8)


def test_an_image_is_treated_once(tmp_path, images):
    defense, path = Counting(), tmp_path / "purified.sqlite"
    first = PurifiedCache(path).run(defense, images[:100], 0)
    assert (first == np.maximum(images[:100], 1) - 1).all() and defense.seen == 100
    ticks = []
    # another process, more images, in another order
    again = PurifiedCache(path).run(defense, images[::-1], 0, progress=ticks.append)
    assert (again[::-1][:100] == first).all() and defense.seen == 150 and sum(ticks) == 150


def test_images_do_not_come_class_by_class(images):
    """Those on one frame see each other, and data sets stand in the order of their classes."""
    given = []

    class Watched(Counting):
        def run(self, images, seed, **how):
            given.append(images)
            return super().run(images, seed, **how)

    for order in (images, images[::-1]):
        PurifiedCache(None).run(Watched(), order, 0)
    one, other = np.concatenate(given[:3]), np.concatenate(given[3:])
    assert np.array_equal(one, other) and not np.array_equal(one, images)


@pytest.mark.parametrize("change", ["seed", "defense", "shape"])
def test_what_decides_an_image_is_in_its_key(tmp_path, images, change):
    cache = PurifiedCache(tmp_path / "purified.sqlite")
    cache.run(Counting(), images, 0)
    other = Counting(2) if change == "defense" else Counting()
    given = images.reshape(150, 4, 16, 3) if change == "shape" else images
    got = cache.run(other, given, int(change == "seed"))
    assert other.seen == 150 and got.shape == given.shape


def test_a_defense_that_asks_is_kept_for_each_classifier(tmp_path, images):
    cache = PurifiedCache(tmp_path / "purified.sqlite")
    boxes = [Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": name}) for name in "ab"]
    for queries_classifier, wanted in ((True, 300), (False, 150)):
        defense = Counting(3 + queries_classifier, queries_classifier)
        for box in (*boxes, *boxes):
            cache.run(defense, images, 0, box)
        assert defense.seen == wanted


def test_a_stopped_run_keeps_what_was_done(tmp_path, images):
    class Stopping(Counting):
        def run(self, images, seed, **more):
            if self.seen:
                raise KeyboardInterrupt
            return super().run(images, seed, **more)

    cache = PurifiedCache(tmp_path / "purified.sqlite")
    with pytest.raises(KeyboardInterrupt):
        cache.run(Stopping(), images, 0)
    rest = Counting()
    cache.run(rest, images, 0)
    assert rest.seen == len(images) - 64


def test_the_file_of_an_earlier_version_is_reused(tmp_path, images):
    first = PurifiedCache(tmp_path / OLD_NAME).run(Counting(), images, 0)
    (tmp_path / f"{OLD_NAME}-journal").write_bytes(b"")
    defense = Counting()
    for _ in range(2):
        again = PurifiedCache(tmp_path / "purified.sqlite").run(defense, images, 0)
        assert (again == first).all() and defense.seen == 0
    assert not (tmp_path / OLD_NAME).exists() and not (tmp_path / f"{OLD_NAME}-journal").exists()


def test_without_a_file_nothing_is_kept(images):
    defense = Counting()
    for _ in range(2):
        PurifiedCache(None).run(defense, images, 0)
    assert defense.seen == 300


def test_a_defense_must_give_images_back(images):
    class Odd(Counting):
        def run(self, images, seed, **more):
            return images[:-1]

    with pytest.raises(InputError, match=r"counting: got uint8 \(63, 8, 8, 3\) back, expected uint8 \(64, 8, 8, 3\)"):
        PurifiedCache(None).run(Odd(), images, 0)


@pytest.fixture
def known():
    """A black box that takes white corners for class 1, and an honest one; both tell dark from bright: every number is
    known."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.full((100, 32, 32, 3), 40, np.uint8) + (80 * labels).astype(np.uint8)[:, None, None, None]

    def honest(p):
        return np.eye(3)[np.rint((p[:, 0, 0, 0].astype(float) - 40) / 80).astype(int)]

    def fooled(p):
        return np.where((p[:, -5, -5].min(-1) == 255)[:, None], [0, 2, 0], honest(p))

    data = Dataset("three", "test", x, labels, ("a", "b", "c"))
    boxes = Classifier(fooled, {"c": "fooled"}), Classifier(honest, {"c": "honest"})
    return Scenario(data, "white", BadNets(32, 0, 3, "white"), 1, *boxes)


def test_a_row_counts_what_the_classifier_says(known):
    assert evaluate(known, Nothing(), 0, PurifiedCache(None)) == (
        Rates(Rate(100, 100), Rate(70, 70), Rate(30, 100), Rate(0, 70)),
        Rates(Rate(100, 100), Rate(0, 70), Rate(100, 100), Rate(70, 70)),
    )


def test_a_defense_that_asks_asks_the_clean_classifier_too(known):
    """What is taken for class 1 is blackened: of the poisoned one's images all that have the trigger."""

    class Asking(Counting):
        def run(self, images, seed, *, classify=None, progress=None):
            return np.where((classify(images).argmax(1) == 1)[:, None, None, None], np.uint8(40), images)

    assert evaluate(known, Asking(queries_classifier=True), 0, PurifiedCache(None)) == (
        Rates(Rate(70, 100), Rate(0, 70), Rate(50, 100), Rate(50, 70)),
        Rates(Rate(70, 100), Rate(0, 70), Rate(70, 100), Rate(70, 70)),
    )


def test_two_runs_may_add_to_one_record(tmp_path, images):
    data = Dataset("two", "test", images, np.arange(150) % 2, ("a", "b"))
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scenario = Scenario(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box)
    counts = Rates(*[Rate(1, 2)] * 4)
    first, second = (ResultsFile("defense-two", tmp_path) for _ in range(2))
    for i, rows in enumerate((first, second, first)):
        rows.add(f"row {i}", DefenseSpec("none"), scenario, Nothing(), i, counts)
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert content["rows"].keys() == {"row 0", "row 1", "row 2"}
    assert {row["run"] for row in content["rows"].values()} <= content["runs"].keys()


def test_what_is_counted_anew_is_not_undone_by_a_run_that_read_it_before(tmp_path, images):
    data = Dataset("two", "test", images, np.arange(150) % 2, ("a", "b"))
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scenario = Scenario(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box)

    def counts(hits):
        return Rates(*[Rate(hits, 2)] * 4)

    ResultsFile("defense-two", tmp_path).add("row", DefenseSpec("none"), scenario, Nothing(), 0, counts(1))
    stale, fresh = (ResultsFile("defense-two", tmp_path) for _ in range(2))
    fresh.add("row", DefenseSpec("none"), scenario, Nothing(), 0, counts(2))
    stale.add("other", DefenseSpec("none"), scenario, Nothing(), 1, counts(0))
    content = json.loads((tmp_path / "defense-two.json").read_text())
    assert content["rows"]["row"]["CA"] == [2, 2] and content["rows"]["other"]["CA"] == [0, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["defense-two.json"]


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("defense-*.json")), ids=lambda path: path.stem)
def test_records_are_written_as_they_are_read(path):
    content = json.loads(path.read_text())
    parts = Record.from_json(content).to_json()
    assert json.dumps(parts) == json.dumps({name: content[name] for name in parts})


def test_no_images_have_no_interval():
    assert np.isnan(interval(Rate(0, 0))).all()


def test_wilsons_interval():
    """Against scipy's, and where the normal approximation fails."""
    for hits, of in ((0, 10), (7, 10), (990, 1000), (10, 10)):
        low, high = binomtest(hits, of).proportion_ci(method="wilson")
        assert interval(Rate(hits, of)) == pytest.approx((100 * low, 100 * high), abs=1e-9)
        # four frames of each film, all alike: as if there were one of each
        assert interval(Rate(4 * hits, 4 * of, 4.0)) == pytest.approx((100 * low, 100 * high), abs=1e-9)


def test_rates_leave_the_target_class_out():
    labels = np.array([0, 0, 1, 1, 2])
    clean = np.array([0, 1, 1, 1, 2])
    triggered = np.array([0, 0, 0, 1, 0])
    r = rates(labels, clean, triggered, target=0)
    assert r == Rates(ca=Rate(4, 5, 1.0), asr=Rate(2, 3, 1.0), pa=Rate(3, 5, 1.0), pa_nontarget=Rate(1, 3, 1.0))
    assert r.asr.percent == pytest.approx(200 / 3)
    assert np.isnan(rates([0], [0], [0], 0).asr.percent)
    with pytest.raises(InputError):
        rates(labels, clean, triggered[:4], 0)


def test_frames_of_one_film_count_as_one_image():
    assert design_effect(None) == design_effect([]) == design_effect([4, 2, 9]) == 1
    assert design_effect([7, 7, 7, 1, 1, 1]) == 3
    assert design_effect([0, 0, 0, 1]) == 10 / 4
    labels, tracks = [0, 0, 0, 1, 1, 2], [5, 5, 5, 6, 6, 7]
    found = rates(labels, labels, labels, 0, tracks)
    assert found.ca == found.pa == (6, 6, 14 / 6)
    assert found.asr == (0, 3, 5 / 3) and found.pa_nontarget == (3, 3, 5 / 3)


def test_a_row_of_films_has_the_design_effect(images):
    data = Dataset("two", "test", images, np.arange(150) % 2, ("a", "b"), tracks=np.arange(150) // 2)
    box = Classifier(lambda p: np.zeros((len(p), 2)), {"classifier": "a"})
    scenario = Scenario(data, "white", BadNets(8, 0, 3, "white", margin=1), 1, box, box)
    counts, clean = evaluate(scenario, Nothing(), 0, PurifiedCache(None))
    assert counts.ca == clean.pa == (75, 150, 2.0)
    assert counts.asr == (0, 75, 1.0)  # the other half of each film is of the target class
