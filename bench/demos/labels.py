"""Measure the demo classifier's labels of road signs: as they arrive, purified, and behind a guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zipsdk import Decision, Guard, Purifier
from zipsdk.testing import DemoClassifier, demo_images
from zipsdk.testing.images import TARGET, TRIGGERS
from zipsdk.testing.signs import CLASSES
from zipsdk.types import F32, I64, U8

#: The stages of an image, in the order of the tables.
STAGES = ("before", "purified", "behind the guard")


@dataclass(frozen=True)
class Kind:
    """Images of one kind, clean or with one trigger, and what became of them.

    Attributes:
        trigger: its name, or None for clean images.
        images, purified: uint8 (n, H, W, 3). With a trigger, images of the target class are left out.
        truth: int64 (n,).
        before, after: probabilities (n, classes) of `images` and of `purified`.
        decisions: of the guard.
    """

    trigger: str | None
    images: U8
    purified: U8
    truth: I64
    before: F32
    after: F32
    decisions: list[Decision]

    @property
    def name(self) -> str:
        return (self.trigger or "clean").replace("_", " ")

    def labels(self, stage: str) -> I64:
        """Return the labels (n,) at one of the `STAGES`; -1 where the guard abstained."""
        if stage == "behind the guard":
            return np.array([-1 if d.label is None else d.label for d in self.decisions])
        scores = self.before if stage == "before" else self.after
        return scores.argmax(1)

    def right(self, stage: str) -> float:
        """Return the share of images with their true label."""
        return float((self.labels(stage) == self.truth).mean())

    def fooled(self, stage: str) -> float:
        """Return the share of images of other classes that are taken for the target."""
        others = self.truth != TARGET
        return float((self.labels(stage)[others] == TARGET).mean())

    @property
    def flagged(self) -> float:
        """Return the share of images that the guard purified."""
        return float(np.mean([d.flagged for d in self.decisions]))


def measure(classifier: DemoClassifier, purifier: Purifier, n: int, calibration: int, seed: int) -> list[Kind]:
    """Classify, purify and guard `n` images of each kind.

    The guard's reference statistics are measured on `calibration` clean images of another seed, without labels. The
    purifier has a seed, so that it gives an image the same result each time.
    """
    guard = Guard.fit(classifier, demo_images(calibration, seed=seed + 1)[0], purifier)
    kinds = []
    for trigger in (None, *TRIGGERS):
        images, truth = demo_images(n, trigger=trigger, seed=seed)
        if trigger is not None:
            images, truth = images[truth != TARGET], truth[truth != TARGET]
        decisions = guard.run(images)
        # the guard has purified what it flagged; the same seed gives the same result
        rest = [i for i, d in enumerate(decisions) if d.image is None]
        purified = np.stack([x if d.image is None else d.image for x, d in zip(images, decisions, strict=True)])
        if rest:
            purified[rest] = purifier.run(images[rest])
        kinds.append(Kind(trigger, images, purified, truth, classifier(images), classifier(purified), decisions))
    return kinds


def verdict(decision: Decision) -> str:
    """Say in a few words what the guard found."""
    return f"{'flagged' if decision.flagged else 'passed'}: {decision.feature or '-'}"


def rates(kinds: Sequence[Kind]) -> dict[str, Any]:
    """Return all rates as JSON values, for the record."""
    return {
        kind.name: {
            "images": len(kind.truth),
            "flagged": kind.flagged,
            **{stage: {"right": kind.right(stage), "fooled": kind.fooled(stage)} for stage in STAGES},
        }
        for kind in kinds
    }


def examples_table(kinds: Sequence[Kind], each: int, color: bool) -> str:
    """Describe the first images of each kind, one a line; labels that are wrong are marked, in a terminal in red."""

    def shown(label: int | None, truth: int) -> str:
        name = "abstained" if label is None else CLASSES[label]
        good = label == truth
        text = f"{' ' if good else '!'} {name:<20}"
        return f"\x1b[{32 if good else 31}m{text}\x1b[0m" if color else text

    titles = ("trigger", "true label", "  before", "  purified", "  behind the guard", "guard: decisive feature")
    widths = (13, 20, 22, 22, 22, 0)
    lines = ["".join(f"{t:<{w}}" for t, w in zip(titles, widths, strict=True))]
    for kind in kinds:
        before, after = kind.labels("before"), kind.labels("purified")
        # of other classes, on which a trigger can show
        chosen = np.flatnonzero(kind.truth != TARGET)[:each]
        for i in chosen:
            truth, decision = int(kind.truth[i]), kind.decisions[i]
            labels = (int(before[i]), int(after[i]), decision.label)
            lines.append(
                f"{kind.trigger or 'none':<13}{CLASSES[truth]:<20}"
                + "".join(shown(label, truth) for label in labels)
                + verdict(decision)
            )
    return "\n".join(lines)


def rates_table(kinds: Sequence[Kind]) -> str:
    """Tabulate the shares of right and of fooled labels."""
    rows = [("", "", [kind.name for kind in kinds]), ("images", "", [str(len(kind.truth)) for kind in kinds])]
    for title, share in (("right label", Kind.right), (f'taken for "{CLASSES[TARGET]}"', Kind.fooled)):
        for stage in STAGES:
            first = title if stage == STAGES[0] else ""
            rows.append((first, stage, [f"{100 * share(kind, stage):.0f}%" for kind in kinds]))
    rows.append(("flagged by the guard", "", [f"{100 * kind.flagged:.0f}%" for kind in kinds]))
    return "\n".join(f"{first:<28}{stage:<18}" + "".join(f"{c:>13}" for c in cells) for first, stage, cells in rows)
