"""BDMAE: find a local trigger with a masked autoencoder and the classifier's labels, and restore what it covers.

Sun et al. 2023, "Mask and Restore", arXiv:2303.15564; written from the paper and, for its constants and for what the
paper leaves open, from what the released code was seen to do:

1. Two scores for every token. Three quarters of the tokens are hidden and restored, 25 times. Image score: 1 - SSIM of
   the image and the mean of all restorations so far, after each of 5 rounds of 5 masks, averaged. Label score: the
   fraction of the 25 masks that hid the token and changed the label.
2. Each score is refined 10 times: of the L tokens with the highest scores a connected half is hidden. Where the label
   changes their scores rise and those of the other half fall by 0.05, otherwise the reverse. L is the number of tokens
   with an image score of at least 0.2, or the sum of the label scores.
3. The mean of both scores is thresholded at 0.6, 0.55, ... 0.4, and the tokens above each threshold are hidden and
   restored. The thresholds rise while the lowest hides a quarter of the image or more: 1 - threshold shrinks by 1%, at
   most 200 times. A token above the lowest threshold becomes the mean of its restorations; the others do not change.

Here images are independent. In the released code a batch shares its random masks, and the number of tokens to hide in 2
and 3 and the rise of the thresholds are means over the batch, so the result for an image depends on its batch. Three
more differences:

- Half of L tokens is at least one, and all of them are among the L. In the released code the first may be any token,
  and if it is not among the L, the code changes its score twice.
- The classifier is a black box for uint8 images: its input is rounded and clipped to 0..255. In the released code it
  gets the restorations in floating point.
- It is queried 47 times. The released code queries it 5 times more, for restorations of 3 whose labels are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common.ssim import ssim_map
from bench.defenses.base import U8, Classify, description
from bench.defenses.mae import Restorer
from zipsdk.errors import InputError, ModelError

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BDMAE:
    """The defense; its defaults are the published values.

    restorer: from mae.py or vit_mae.py. It decides the grid of tokens: 14 x 14 with ViT-MAE at 224 pixels, as
        published. Images of another side are resized to its side, bilinear, and restorations back, nearest, also as
        published.
    rounds, masks: number of rounds, and of masks in each, that hide three quarters (`share`) of the tokens.
    refinements: number of refinements of each score, by `step`.
    topology: increase of a token's chance to be chosen beside a chosen one.
    alpha: weight of the image score; the label score has the rest.
    suspicious: smallest image score that counts for L.
    cuts, spacing, count: the highest threshold, the distance between thresholds, and their number.
    most: the lowest threshold must hide less than this share.
    batch: images at a time.
    """

    # cache keys and row keys hash the names of these fields

    restorer: Restorer
    rounds: int = 5
    masks: int = 5
    share: float = 0.75
    refinements: int = 10
    step: float = 0.05
    topology: float = 0.5
    alpha: float = 0.5
    suspicious: float = 0.2
    cuts: float = 0.6
    spacing: float = 0.05
    count: int = 5
    most: float = 0.25
    batch: int = 32

    @property
    def name(self) -> str:
        return "BDMAE"

    @property
    def total_steps(self) -> float:
        return self.rounds * self.masks + 2 * self.refinements + self.count

    @property
    def queries(self) -> float:
        return 1 + self.rounds * self.masks + 2 * self.refinements + 1

    @property
    def queries_classifier(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self).items() if k not in ("restorer", "batch")}
        grid, side = self.restorer.grid, self.restorer.side
        return description(
            "BDMAE",
            **numbers,
            tokens=f"{grid} x {grid}",
            resized=f"to {side} x {side} pixels, bilinear, and back, nearest",
            restorer=self.restorer.describe(),
        )

    def run(
        self,
        images: U8,
        seed: int,
        *,
        classify: Classify | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """Treat images; see `Defense.run`. An image's random numbers come from the seed and the image itself.

        Raises:
            InputError: images of another shape or dtype, or no classifier.
            ModelError: the restorer or the classifier returned values that are not finite, or of another shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)")
        if classify is None:
            raise InputError("classify: got None, expected the classifier: BDMAE queries it to find the trigger")
        out = np.empty_like(images)
        for i in range(0, len(images), self.batch):
            part = images[i : i + self.batch]
            search = _Search(self, part, classify, [generator(seed, image) for image in part])
            out[i : i + len(part)] = search.purified()
            if progress is not None:
                progress(len(part))
        return out


class _Search:
    """The search for triggers in a batch. Scores are float64 (n, tokens), tokens in row-major order."""

    def __init__(self, how: BDMAE, images: U8, classify: Classify, rngs: list[np.random.Generator]):
        self.how, self.classify, self.rngs = how, classify, rngs
        self.grid, side = how.restorer.grid, how.restorer.side
        self.tokens = self.grid**2
        self.x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        self.seen = self.x
        if self.x.shape[2:] != (side, side):
            self.seen = F.interpolate(self.x, (side, side), mode="bilinear", align_corners=False)
        self.labels = self.labels_of(self.x)
        self.beside = neighbors(self.grid)

    def purified(self) -> U8:
        """Return the images with the found triggers restored, uint8 (n, H, W, 3)."""
        by_image, by_label = self.first_scores()
        by_image = self.refined(by_image, (by_image >= self.how.suspicious).sum(1))
        by_label = self.refined(by_label, by_label.sum(1).astype(int))
        return _to_u8(self.fused(self.how.alpha * by_image + (1 - self.how.alpha) * by_label))

    def first_scores(self) -> tuple[F64, F64]:
        """Compute the image scores and the label scores."""
        how, n = self.how, len(self.x)
        by_image, by_label = np.zeros((n, self.tokens)), np.zeros((n, self.tokens))
        total, times = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for _ in range(how.rounds):
            masks = np.stack([random_masks(rng, self.tokens, how.masks, how.share) for rng in self.rngs], axis=1)
            for hidden in masks:
                restored, mask = self.restored(hidden)
                by_label[hidden & (self.labels_of(restored) != self.labels)[:, None]] += 1
                total += mask * restored
                times += mask
            alike = ssim_map(self.x, total / times)  # a round hides every token, so times > 0
            alike = F.interpolate(alike[:, None], (self.grid, self.grid), mode="nearest")
            by_image += 1 - alike.reshape(n, -1).double().numpy()
        return by_image / how.rounds, by_label / (how.rounds * how.masks)

    def refined(self, scores: F64, sizes: npt.NDArray[np.int_]) -> F64:
        """Refine scores; `sizes` (n,) has the L of each image."""
        how, scores = self.how, scores.copy()
        for _ in range(how.refinements):
            top = highest(scores, np.maximum(sizes, 1))
            half = np.stack([
                chosen_together(rng, scores[i], top[i], max(1, sizes[i] // 2), self.beside, how.topology)
                for i, rng in enumerate(self.rngs)
            ])  # fmt: skip
            restored, _ = self.restored(half)
            same = (self.labels_of(restored) == self.labels)[:, None]
            up, down = np.where(same, top & ~half, half), np.where(same, half, top & ~half)
            scores += how.step * (up.astype(float) - down)
        return scores

    def fused(self, scores: F64) -> Tensor:
        """Restore the images where their scores are above the lowest threshold: float (n, 3, H, W)."""
        how = self.how
        below = 1 - how.cuts + how.spacing * np.arange(how.count)[None].repeat(len(scores), 0)  # 1 - threshold
        for _ in range(200):
            below[(scores >= 1 - below[:, -1:]).mean(1) >= how.most] *= 0.99
        total, times = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for threshold in 1 - below.T:
            restored, mask = self.restored(scores >= threshold[:, None])
            total += mask * restored
            times += mask
        return torch.where(times > 0, total / times.clamp_min(1), self.x)

    def restored(self, hidden: Bools) -> tuple[Tensor, Tensor]:
        """Restore the hidden tokens.

        Returns:
            float images (n, 3, H, W), and the float mask of hidden pixels (n, 1, H, W), 0 or 1.
        """
        at, size = torch.from_numpy(hidden), tuple(self.x.shape[2:])
        y = self.how.restorer(self.seen, at)
        if y.shape != self.seen.shape or not torch.isfinite(y).all():
            raise ModelError(
                f"restorer: got {tuple(y.shape)} with {int((~torch.isfinite(y)).sum())} numbers that are not finite, "
                f"expected {tuple(self.seen.shape)}, all finite; its weights may be damaged"
            )
        mask = F.interpolate(at.view(-1, 1, self.grid, self.grid).float(), size, mode="nearest")
        if y.shape != self.x.shape:
            y = F.interpolate(y, size, mode="nearest")
        return torch.where(mask > 0, y.clamp(0, 1), self.x), mask

    def labels_of(self, x: Tensor) -> npt.NDArray[np.intp]:
        """Query the classifier for the labels of float images."""
        scores = np.asarray(self.classify(_to_u8(x)))
        if scores.ndim != 2 or len(scores) != len(x) or not np.isfinite(scores).all():
            raise ModelError(
                f"classifier: got {scores.dtype} {scores.shape} for {len(x)} images, expected finite scores, a row each"
            )
        return scores.argmax(1)


def generator(seed: int, image: U8) -> np.random.Generator:
    """Make the random generator of one image."""
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    return np.random.default_rng([seed % 2**64, int.from_bytes(digest[:8], "little")])


def random_masks(rng: np.random.Generator, tokens: int, masks: int, share: float) -> Bools:
    """Draw one round of masks, each of which hides a share of the tokens or slightly less: bool (masks, tokens).

    Permutations of the tokens, one after another, are dealt to the masks, so the numbers of times that tokens are
    hidden differ by at most one. A mask with the end of one permutation and the start of the next can get a token
    twice, as in the released code.
    """
    size = int(tokens * share)
    dealt = np.concatenate([rng.permutation(tokens) for _ in range(masks)])
    out = np.zeros((masks, tokens), bool)
    np.put_along_axis(out, dealt[: masks * size].reshape(masks, size), True, axis=1)
    return out


def highest(scores: F64, sizes: npt.NDArray[np.int_]) -> Bools:
    """Mark the `sizes` (n,) highest scores of each row, the first of equal ones: bool (n, tokens)."""
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return place < sizes[:, None]


def neighbors(grid: int) -> Bools:
    """Mark the pairs of tokens that share a side: bool (tokens, tokens)."""
    y, x = np.divmod(np.arange(grid**2), grid)
    return np.abs(y[:, None] - y) + np.abs(x[:, None] - x) == 1


def chosen_together(
    rng: np.random.Generator, scores: F64, top: Bools, size: int, beside: Bools, topology: float
) -> Bools:
    """Choose `size` of the tokens in `top`, one after another: bool (tokens,).

    The token with the largest u * (score + topology if beside a chosen token) is next, u uniform in [0, 1).
    """
    chosen, near = np.zeros_like(top), np.zeros_like(top)
    for _ in range(size):
        chance = rng.random(len(scores)) * (scores + topology * near)
        best = np.argmax(np.where(top & ~chosen, chance, -np.inf))
        chosen[best] = True
        near |= beside[best]
    return chosen


def _to_u8(x: Tensor) -> U8:
    """Convert float (n, 3, H, W) in [0, 1] to uint8 (n, H, W, 3)."""
    return np.ascontiguousarray((x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
