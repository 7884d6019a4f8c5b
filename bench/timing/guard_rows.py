"""The rows of `bench.speed` that classify: the classifier alone, the detector, and ZIP behind `zipsdk.Guard`.

Where there is a data set and a classifier that was trained on poisoned pictures of it, the detector decides and 5% of
the pictures carry the trigger. Elsewhere the flags are simulated: the detector computes its score as always, and then
every twentieth picture is flagged whatever it was.
"""

from __future__ import annotations

import argparse
import time
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
from bench.common.record import quartiles
from bench.defenses.guarded import flagged_places
from bench.timing.zip_rows import U8, Bench, LeftOut, Row, Work
from zipsdk.errors import EngineError, MissingDependencyError
from zipsdk.guard import speedup_bound
from zipsdk.sampling.schedule import PAPER_STEPS


@dataclass(frozen=True)
class Simulated(zipsdk.ScaleUp):
    """SCALE-UP that computes its score and then flags by place: those of `places`, over and over."""

    places: tuple[bool, ...] = ()
    _turn: Iterator[int] = field(default_factory=count, hash=False, compare=False)

    def score(self, scores: npt.ArrayLike) -> float:
        super().score(scores)
        return float(self.places[next(self._turn) % len(self.places)])


class Stopwatch:
    """Sums up the seconds that calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return inner


def open_classifier(bench: Bench, args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any, str]:
    """(a black box, what it is, the attack it was trained with or None, why flags are simulated or "")."""
    from bench.attacks import poisoning, registry
    from bench.data import datasets
    from bench.victims import training, user

    given = user.from_options(args)
    if given is not None:
        with suppress(LeftOut):  # a function of torch takes as many threads as all else; others do without it
            _ = bench.torch
        return given, given.info, None, "the classifier is the user's, and its trigger not known here"
    _ = bench.torch  # before the classifier, whose record says how many threads it has
    why = "there is no data set"
    if bench.dataset is not None:
        data = datasets.load(args.dataset, "train", args.data, side=bench.side)
        attack = registry.make(args.attack, bench.side, poisoning.SEED)
        poisoned = poisoning.poison(data, attack, poisoning.RATE, poisoning.TARGET, poisoning.SEED)
        how = training.recipe(data, args.architecture, 0, args.epochs, bench.where)
        key = training.key_of(training.ingredients(poisoned, how))
        if args.train or _finished(training.cache_folder() / f"{key}.pt"):
            trained = training.train(poisoned, how, device=bench.where)
            info = {"classifier": args.architecture, "key": key, "attack": attack.name}
            return trained, info, attack.tests()[0], ""
        why = f"no {args.architecture} trained on {args.dataset} with {args.attack} is in the cache, see --train"
    made = random_classifier(bench, args.architecture)
    return made, made.info, None, why


def _finished(path: Any) -> bool:
    """Whether a training ended: only one that has not keeps its optimizer."""
    import torch

    return path.is_file() and "optimizer" not in torch.load(path, map_location="cpu", weights_only=True)


def random_classifier(bench: Bench, architecture: str) -> Any:
    """An architecture with random weights, for its time."""
    from bench.victims import networks, training

    torch = bench.torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.ARCHITECTURES[architecture](10, bench.side)
    model = model.to(bench.where, memory_format=torch.channels_last)
    return training.black_box(model, bench.where, {"classifier": architecture, "weights": "random"})


class GuardRows:
    """Rows (a) and (d), and the two times that the analytic bound is made of."""

    def __init__(self, bench: Bench):
        self.bench, self.args = bench, bench.args
        self.n_views = 1 + len(zipsdk.ScaleUp().scales)

    @cached_property
    def opened(self) -> tuple[Any, dict[str, Any], Any, str]:
        """See `open_classifier`."""
        try:
            return open_classifier(self.bench, self.args)
        except (ImportError, MissingDependencyError) as e:
            raise LeftOut(str(e)) from e

    def classify(self, pictures: U8) -> Any:
        return self.opened[0](pictures)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        _, info, attack, why = self.opened
        return {"classifier": info, "flags": "the detector's" if attack else f"simulated: {why}",
                "poisoned_share": self.args.poisoned}  # fmt: skip

    def rows(self) -> list[Row]:
        args, bench = self.args, self.bench
        chunk = max(1, round(1 / args.poisoned))
        rounds = max(1, round(args.decisions / chunk))
        n = min(8, chunk)
        name = Path(args.classifier or args.architecture).name  # of the user's where there is one
        rows = [
            Row("classify", "a", f"classifier alone, {name}, 1 at once", 1, 0, self._alone, args.rounds),
            Row("detect", "d", "SCALE-UP alone, a picture and 5 copies", n, 0, self._detector(n), rounds),
            *self._stream("whole", 1, chunk, rounds, bench.canvas),
        ]  # fmt: skip
        # in --quick a small canvas, which few decisions fill, where the engine takes one
        canvas = 2 * bench.side if bench.spec.flexible and args.quick else bench.canvas
        tiles = (canvas // bench.side) ** 2
        if tiles > 1:
            fills = args.decisions if args.quick else round(tiles / args.poisoned)
            chunk = max(chunk, fills)
            rows += self._stream("tiled", tiles, chunk, max(1, round(args.decisions / chunk)), canvas)
        return rows

    def _alone(self) -> Work:
        picture = self.bench.some(1)
        return Work(lambda: self.classify(picture), self.opened[0].runs, lambda: self.classify(picture))

    def _detector(self, n: int) -> Callable[[], Work]:
        def make() -> Work:
            detector, pictures = zipsdk.ScaleUp(), self.bench.some(n)

            def call() -> None:
                for rgb in pictures:
                    detector.score(self.classify(np.stack([rgb, *detector.copies(rgb)])))

            return Work(call, self.opened[0].runs, lambda: self.classify(pictures[:1]))

        return make

    def _stream(self, how: str, tiles: int, chunk: int, rounds: int, canvas: int) -> list[Row]:
        """The guard on chunks of a stream, the purification that its bound is made of, and everything flagged."""
        share = self.args.poisoned
        flagged = int(flagged_places(chunk, share).sum())
        crowd = min(tiles, 4) if self.args.quick else tiles
        name = f"{tiles} to a {canvas} canvas"
        note = f"{flagged} picture{'s' * (flagged > 1)} at once"
        return [
            Row(f"{how}-classify", "d", f"ZIP, {name}, then the classifier", flagged, PAPER_STEPS,
                lambda: self._purify_all(how, tiles, flagged, canvas), rounds, note=note),
            Row(f"guard-{how}", "d", f"guard, {share:.0%} poisoned, {name}", chunk, PAPER_STEPS,
                lambda: self._guard(how, tiles, chunk, canvas, False), rounds, note=f"{chunk} decisions a chunk"),
            Row(f"guard-{how}-all", "d", f"guard, everything flagged, {name}", crowd, PAPER_STEPS,
                lambda: self._guard(how, tiles, crowd, canvas, True), min(rounds, 3)),
        ]  # fmt: skip

    def _purify_all(self, how: str, tiles: int, n: int, canvas: int) -> Work:
        runner, pictures = self.bench.runner(how, canvas=canvas), self.bench.some(n)

        def call() -> dict[str, int]:
            clean = runner.run(list(pictures))
            for i in range(0, n, self.n_views):
                self.classify(np.stack(clean[i : i + self.n_views]))
            return {"pictures": n, "flagged": n, "canvases": -(-n // tiles)}

        return Work(call, self.bench.runs(runner), lambda: self.classify(pictures[:1]))

    def _guard(self, how: str, tiles: int, n: int, canvas: int, everything: bool) -> Work:
        runner = self.bench.runner(how, canvas=canvas)
        _, _, attack, _ = self.opened
        spots = np.ones(n, bool) if everything else flagged_places(n, self.args.poisoned)
        real = attack is not None and not everything
        detector = zipsdk.ScaleUp() if real else Simulated(places=tuple(spots))
        watch = Stopwatch()
        timed = SimpleNamespace(run=watch.timed(runner.run))
        # a picture and its copies are one call, as where the classifier takes one picture at a time
        guard = zipsdk.Guard(watch.timed(self.classify), timed, detector, max_batch=self.n_views)
        turn = count()

        def call() -> dict[str, float]:
            before = watch.seconds
            pictures = np.take(self.bench.pictures, np.arange(n) + n * next(turn), axis=0, mode="wrap")
            if real:
                pictures[spots] = attack.apply(pictures[spots])
            decisions = guard.run(list(pictures))
            for decision in decisions:
                if decision.label is None:
                    raise EngineError(f"guard: got no label ({decision.error}), wanted one for every picture")
            flags = np.array([d.flagged for d in decisions])
            hits = {"poisoned": int(spots.sum()), "poisoned_flagged": int(flags[spots].sum())} if real else {}
            return {"pictures": n, "flagged": int(flags.sum()), "canvases": -(-int(flags.sum()) // tiles), **hits,
                    "inside": watch.seconds - before}  # fmt: skip

        return Work(call, self.bench.runs(runner), lambda: self.classify(self.bench.some(self.n_views)))


def gate(
    samples: dict[str, list[float]], counts: dict[str, list[dict[str, float]]], how: str, key: str
) -> dict[str, Any]:
    """How much faster a guard was than purifying everything, beside the analytic bound 1 / (p + t_det / T).

    T is the time to purify and classify one picture, on canvases as full as the guard's were; so p T is what its
    flagged pictures cost. The share of the bound that was reached is taken within each call of the guard: what its
    classifier and its purifier took, which is the bound's n t_det + n p T, over what the call took. A bound from
    samples that were taken minutes apart would say more of the machine's other loads than of the guard.

    Args:
        samples: seconds a picture by row, a round each.
        counts: what the rounds have counted, by row.
        how: "whole" or "tiled".
        key: of the guard's row.
    """

    def total(row: str, what: str) -> int:
        return int(sum(c[what] for c in counts[row]))

    alone = f"{how}-classify"
    flagged, pictures = total(key, "flagged"), total(key, "pictures")
    fill = total(alone, "flagged") / total(alone, "canvases")
    fuller = fill * total(key, "canvases") / flagged if flagged else 1.0
    t_detect, t_purify, mean = float(np.mean(samples["detect"])), float(np.mean(samples[alone])) * fuller, samples[key]
    share = flagged / pictures
    each = [c["inside"] / (c["pictures"] * g) for g, c in zip(mean, counts[key], strict=True)]
    out = {"decisions": pictures, "flagged": flagged, "flagged_share": share, "mean_ms": 1e3 * float(np.mean(mean)),
           "detect_ms": 1e3 * t_detect, "purify_ms": 1e3 * t_purify,
           "bound": speedup_bound(share, t_detect, t_purify), "measured": t_purify / float(np.mean(mean)),
           "of_bound": quartiles(each)}  # fmt: skip
    if "poisoned" in counts[key][0]:
        poisoned, caught = total(key, "poisoned"), total(key, "poisoned_flagged")
        out |= {"true_positive_rate": caught / poisoned,
                "false_positive_rate": (flagged - caught) / (pictures - poisoned)}  # fmt: skip
    return out
