"""Rows (a) and (d) of `bench.speed`: the classifier alone, the detector, and ZIP behind `zipsdk.Guard`.

With a data set and a classifier trained on poisoned images of it, the detector decides and 5% of the images carry the
trigger. Otherwise the flags are simulated: the detector computes its score as usual, and then every twentieth image is
flagged.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

import zipsdk
from bench.common.timing import Stopwatch, quartiles
from bench.defenses.guarded import flagged_places
from bench.timing.setup import U8, LeftOut, SpeedSetup, TimingRow, Work
from zipsdk.errors import EngineError, MissingDependencyError
from zipsdk.guard import speedup_bound
from zipsdk.sampling.schedule import PAPER_STEPS


@dataclass(frozen=True)
class Simulated(zipsdk.ScaleUp):
    """SCALE-UP that computes its score and then flags by position: `places`, repeated."""

    places: tuple[bool, ...] = ()
    _turn: Iterator[int] = field(default_factory=count, hash=False, compare=False)

    def score(self, scores: npt.ArrayLike) -> float:
        super().score(scores)
        return float(self.places[next(self._turn) % len(self.places)])


@dataclass(frozen=True)
class OpenedClassifier:
    """The classifier of the rows.

    classify: uint8 (N, H, W, 3) -> scores (N, classes); with `runs`, the description of what runs it.
    info: description for the record.
    attack: the attack that poisoned it; None if the flags are simulated.
    why_simulated: reason of simulated flags.
    """

    classify: Any
    info: dict[str, Any]
    attack: Any = None
    why_simulated: str = ""


def open_classifier(setup: SpeedSetup, args: argparse.Namespace) -> OpenedClassifier:
    """Open the user's classifier, or one from the cache, or make one with random weights."""
    from bench.attacks import poisoning, registry
    from bench.data import datasets
    from bench.victims import training, user

    given = user.from_options(args)
    if given is not None:
        with suppress(LeftOut):  # sets the threads of torch, if there is torch
            _ = setup.torch
        return OpenedClassifier(given, given.info, None, "the classifier is the user's, and its trigger not known here")
    _ = setup.torch  # sets the threads that the classifier's record names
    why = "there is no data set"
    if setup.dataset is not None:
        data = datasets.load(args.dataset, "train", args.data, side=setup.side)
        attack = registry.make(args.attack, setup.side, poisoning.SEED)
        poisoned = poisoning.poison(data, attack, poisoning.RATE, poisoning.TARGET, poisoning.SEED)
        how = training.recipe(data, args.architecture, 0, args.epochs, setup.where)
        key = training.config_hash(training.config_dict(poisoned, how))
        if args.train or _finished(training.cache_folder() / f"{key}.pt"):
            trained = training.train(poisoned, how, device=setup.where)
            info = {"classifier": args.architecture, "key": key, "attack": attack.name}
            return OpenedClassifier(trained, info, attack.tests()[0])
        why = f"no {args.architecture} trained on {args.dataset} with {args.attack} is in the cache, see --train"
    made = random_classifier(setup, args.architecture)
    return OpenedClassifier(made, made.info, None, why)


def _finished(path: Path) -> bool:
    """Tell whether a training is complete: a checkpoint of an incomplete one has an optimizer."""
    import torch

    return path.is_file() and "optimizer" not in torch.load(path, map_location="cpu", weights_only=True)


def random_classifier(setup: SpeedSetup, architecture: str) -> Any:
    """Make a classifier with random weights, to time it."""
    from bench.victims import networks, training

    torch = setup.torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.ARCHITECTURES[architecture](10, setup.side)
    model = model.to(setup.where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return training.black_box(model, setup.where, {"classifier": architecture, "weights": "random"})


class GuardRows:
    """Rows (a) and (d), and the two times of the analytic bound."""

    def __init__(self, setup: SpeedSetup):
        self.setup, self.args = setup, setup.args
        self.n_views = 1 + len(zipsdk.ScaleUp().scales)

    @cached_property
    def opened(self) -> OpenedClassifier:
        """The classifier; see `open_classifier`.

        Raises:
            LeftOut: a package is missing.
        """
        try:
            return open_classifier(self.setup, self.args)
        except (ImportError, MissingDependencyError) as e:
            raise LeftOut(str(e)) from e

    def classify(self, images: U8) -> Any:
        """Query the classifier."""
        return self.opened.classify(images)

    def describe(self) -> dict[str, Any]:
        """Describe classifier and flags for the record."""
        opened = self.opened
        flags = "the detector's" if opened.attack else f"simulated: {opened.why_simulated}"
        return {"classifier": opened.info, "flags": flags, "poisoned_share": self.args.poisoned}

    def rows(self) -> list[TimingRow]:
        """List the rows."""
        args, setup = self.args, self.setup
        chunk = max(1, round(1 / args.poisoned))
        rounds = max(1, round(args.decisions / chunk))
        n = min(8, chunk)
        name = Path(args.classifier or args.architecture).name  # the user's if given
        rows = [
            TimingRow("classify", "a", f"classifier alone, {name}, 1 at once", 1, 0, self._alone, args.rounds),
            TimingRow("detect", "d", "SCALE-UP alone, an image and 5 copies", n, 0, self._detector(n), rounds),
            *self._stream("whole", 1, chunk, rounds, setup.frame),
        ]
        # --quick: a small frame if the engine takes one, so that few decisions fill it
        frame = 2 * setup.side if setup.spec.flexible and args.quick else setup.frame
        tiles = (frame // setup.side) ** 2
        if tiles > 1:
            fills = args.decisions if args.quick else round(tiles / args.poisoned)
            chunk = max(chunk, fills)
            rows += self._stream("tiled", tiles, chunk, max(1, round(args.decisions / chunk)), frame)
        return rows

    def _alone(self) -> Work:
        image = self.setup.some(1)
        return Work(lambda: self.classify(image), self.opened.classify.runs, lambda: self.classify(image))

    def _detector(self, n: int) -> Callable[[], Work]:
        def make() -> Work:
            detector, images = zipsdk.ScaleUp(), self.setup.some(n)

            def call() -> None:
                for rgb in images:
                    detector.score(self.classify(np.stack([rgb, *detector.copies(rgb)])))

            return Work(call, self.opened.classify.runs, lambda: self.classify(images[:1]))

        return make

    def _stream(self, how: str, tiles: int, chunk: int, rounds: int, frame: int) -> list[TimingRow]:
        """List the rows of the purification in the bound, of the guard on a stream, and of everything flagged."""
        share = self.args.poisoned
        flagged = int(flagged_places(chunk, share).sum())
        crowd = min(tiles, 4) if self.args.quick else tiles
        name = f"{tiles} to a {frame} frame"
        note = f"{flagged} image{'s' * (flagged > 1)} at once"
        return [
            TimingRow(f"{how}-classify", "d", f"ZIP, {name}, then the classifier", flagged, PAPER_STEPS,
                lambda: self._purify_all(how, tiles, flagged, frame), rounds, note=note),
            TimingRow(f"guard-{how}", "d", f"guard, {share:.0%} poisoned, {name}", chunk, PAPER_STEPS,
                lambda: self._guard(how, tiles, chunk, frame, False), rounds, note=f"{chunk} decisions a chunk"),
            TimingRow(f"guard-{how}-all", "d", f"guard, everything flagged, {name}", crowd, PAPER_STEPS,
                lambda: self._guard(how, tiles, crowd, frame, True), min(rounds, 3)),
        ]  # fmt: skip

    def _purify_all(self, how: str, tiles: int, n: int, frame: int) -> Work:
        runner, images = self.setup.runner(how, frame=frame), self.setup.some(n)

        def call() -> dict[str, int]:
            clean = runner.run(list(images))
            for i in range(0, n, self.n_views):
                self.classify(np.stack(clean[i : i + self.n_views]))
            return {"images": n, "flagged": n, "frames": -(-n // tiles)}

        return Work(call, self.setup.runs(runner), lambda: self.classify(images[:1]))

    def _guard(self, how: str, tiles: int, n: int, frame: int, everything: bool) -> Work:
        runner = self.setup.runner(how, frame=frame)
        attack = self.opened.attack
        spots = np.ones(n, bool) if everything else flagged_places(n, self.args.poisoned)
        real = attack is not None and not everything
        detector = zipsdk.ScaleUp() if real else Simulated(places=tuple(spots))
        watch = Stopwatch()
        timed = SimpleNamespace(run=watch.timed("inside", runner.run))
        # one call for an image and its copies, like a classifier that is queried image by image
        guard = zipsdk.Guard(watch.timed("inside", self.classify), timed, detector, max_batch=self.n_views)
        turn = count()

        def call() -> dict[str, float]:
            before = watch.seconds["inside"]
            images = np.take(self.setup.images, np.arange(n) + n * next(turn), axis=0, mode="wrap")
            if real:
                images[spots] = attack.apply(images[spots])
            decisions = guard.run(list(images))
            for decision in decisions:
                if decision.label is None:
                    raise EngineError(f"guard: got no label ({decision.error}), expected one for every image")
            flags = np.array([d.flagged for d in decisions])
            hits = {"poisoned": int(spots.sum()), "poisoned_flagged": int(flags[spots].sum())} if real else {}
            return {"images": n, "flagged": int(flags.sum()), "frames": -(-int(flags.sum()) // tiles), **hits,
                    "inside": watch.seconds["inside"] - before}  # fmt: skip

        return Work(call, self.setup.runs(runner), lambda: self.classify(self.setup.some(self.n_views)))


def compare_with_bound(
    samples: dict[str, list[float]], counts: dict[str, list[dict[str, float]]], how: str, key: str
) -> dict[str, Any]:
    """Compare the speed-up of a guard over purifying everything with the analytic bound 1 / (p + t_det / T).

    T is the time to purify and classify one image, on frames as full as the guard's, so that p T is the cost of its
    flagged images. The reached share of the bound is measured within each call: (time of the classifier + time of the
    purifier) / time of the call; 1 means no overhead. Samples minutes apart would measure other load on the machine.

    Args:
        samples: seconds for one image by row, one value a round.
        counts: counts of the rounds by row.
        how: "whole" or "tiled".
        key: of the guard's row.
    """

    def total(row: str, what: str) -> int:
        return int(sum(c[what] for c in counts[row]))

    alone = f"{how}-classify"
    flagged, images = total(key, "flagged"), total(key, "images")
    fill = total(alone, "flagged") / total(alone, "frames")
    fuller = fill * total(key, "frames") / flagged if flagged else 1.0
    t_detect, t_purify, mean = float(np.mean(samples["detect"])), float(np.mean(samples[alone])) * fuller, samples[key]
    share = flagged / images
    each = [c["inside"] / (c["images"] * g) for g, c in zip(mean, counts[key], strict=True)]
    out = {
        "decisions": images,
        "flagged": flagged,
        "flagged_share": share,
        "mean_ms": 1e3 * float(np.mean(mean)),
        "detect_ms": 1e3 * t_detect,
        "purify_ms": 1e3 * t_purify,
        "bound": speedup_bound(share, t_detect, t_purify),
        "measured": t_purify / float(np.mean(mean)),
        "of_bound": quartiles(each),
    }
    if "poisoned" in counts[key][0]:
        poisoned, caught = total(key, "poisoned"), total(key, "poisoned_flagged")
        out |= {
            "true_positive_rate": caught / poisoned,
            "false_positive_rate": (flagged - caught) / (images - poisoned),
        }
    return out
