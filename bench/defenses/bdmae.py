"""BDMAE: find a local trigger with a masked autoencoder and the classifier's labels, and restore what it covers.

Sun et al. 2023, "Mask and Restore", arXiv:2303.15564; written from the paper and, for its constants and for what the
paper leaves open, from what the released code was seen to do:

1. Scores for every token, twice. 25 times three quarters of the tokens are hidden and restored. Image score: 1 - SSIM
   of the picture and all restorations so far put together, after each of 5 rounds of 5 masks, averaged. Label score:
   in how many of the 25 the token was hidden and the label changed.
2. Each score is refined 10 times: of the L tokens with the highest scores, half, which hang together, are hidden. Where
   the label changes their scores rise and those of the other half fall by 0.05, else the other way around. L is the
   number of tokens with an image score of at least 0.2, or the sum of the label scores.
3. The mean of both scores is cut at 0.6, 0.55, ... 0.4, and the tokens above each cut are hidden and restored. Cuts
   rise while the lowest hides a quarter of the picture or more: 1 - cut shrinks by 1%, at most 200 times. A token that
   is above the lowest cut becomes the mean of its restorations; the others stay as they are.

Here nothing of a picture depends on others. In the released code a batch shares its random masks, and the number of
tokens to hide in 2 and 3 and the rise of the cuts are means over the batch, so that its neighbours decide what becomes
of a picture. Three more differences:

- Half of L tokens is never less than one, and all of them are among the L. There the first may be any token, and where
  it is not among the L, the code takes its score down, or up, twice.
- The classifier is a black box for uint8 pictures: what it is shown is rounded and cut off at 0 and 255. There it sees
  the restorations' numbers as they are.
- It is asked 47 times. There it is asked 5 times more, for restorations of 3 whose labels nobody uses.
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

from bench.defenses.base import U8, Classify
from bench.defenses.mae import Restorer
from zipsdk.errors import InputError, ModelError

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BDMAE:
    """The defence; its numbers are the published ones.

    restorer: from mae.py or vit_mae.py. The grid of tokens is its own: 14 x 14 with ViT-MAE at 224 pixels, as
        published. Pictures of another side are resized to its side, bilinear, and restorations back, by the nearest
        pixel, also as published.
    rounds, masks: how often three quarters (`share`) are hidden: so many rounds of so many masks.
    refinements: of each score, by `step`.
    topology: how much a token's chance to be chosen grows beside one that is.
    alpha: the weight of the image score; the label score has the rest.
    suspicious: the image score from which a token counts for L.
    cuts, spacing, count: the highest cut, how far the next ones are from it, and how many there are.
    most: the lowest cut must hide less than this share.
    batch: pictures at a time.
    """

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
    def evaluations(self) -> float:
        return self.rounds * self.masks + 2 * self.refinements + self.count

    @property
    def queries(self) -> float:
        return 1 + self.rounds * self.masks + 2 * self.refinements + 1

    @property
    def asks(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self).items() if k not in ("restorer", "batch")}
        grid, side = self.restorer.grid, self.restorer.side
        return {"defence": "BDMAE", **numbers, "tokens": f"{grid} x {grid}",
                "resized": f"to {side} x {side} pixels, bilinear, and back, nearest",
                "restorer": self.restorer.describe()}  # fmt: skip

    def run(
        self,
        pictures: U8,
        seed: int,
        *,
        classify: Classify | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """See `Defence.run`. A picture's chance comes from the seed and from the picture itself.

        Raises:
            InputError: no pictures, or no classifier.
            ModelError: the restorer or the classifier gave something else than finite numbers, as many as asked.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise InputError(f"pictures: got {pictures.dtype} {pictures.shape}, wanted uint8 (N, H, W, 3)")
        if classify is None:
            raise InputError("classify: got None, wanted the classifier: BDMAE looks for what changes its labels")
        out = np.empty_like(pictures)
        for i in range(0, len(pictures), self.batch):
            part = pictures[i : i + self.batch]
            search = _Search(self, part, classify, [generator(seed, picture) for picture in part])
            out[i : i + len(part)] = search.purified()
            if progress is not None:
                progress(len(part))
        return out


class _Search:
    """The search for triggers in a batch. Scores: float64 (n, tokens). Tokens go row by row."""

    def __init__(self, how: BDMAE, pictures: U8, classify: Classify, rngs: list[np.random.Generator]):
        self.how, self.classify, self.rngs = how, classify, rngs
        self.grid, side = how.restorer.grid, how.restorer.side
        self.tokens = self.grid**2
        self.x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        self.seen = self.x
        if self.x.shape[2:] != (side, side):
            self.seen = F.interpolate(self.x, (side, side), mode="bilinear", align_corners=False)
        self.labels = self.labels_of(self.x)
        self.beside = neighbours(self.grid)

    def purified(self) -> U8:
        """uint8 (n, H, W, 3)."""
        by_image, by_label = self.first_scores()
        by_image = self.refined(by_image, (by_image >= self.how.suspicious).sum(1))
        by_label = self.refined(by_label, by_label.sum(1).astype(int))
        return _to_u8(self.fused(self.how.alpha * by_image + (1 - self.how.alpha) * by_label))

    def first_scores(self) -> tuple[F64, F64]:
        """The image scores and the label scores."""
        how, n = self.how, len(self.x)
        by_image, by_label = np.zeros((n, self.tokens)), np.zeros((n, self.tokens))
        total, times = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for _ in range(how.rounds):
            masks = np.stack([random_masks(rng, self.tokens, how.masks, how.share) for rng in self.rngs], axis=1)
            for hidden in masks:
                restored, gone = self.restored(hidden)
                by_label[hidden & (self.labels_of(restored) != self.labels)[:, None]] += 1
                total += gone * restored
                times += gone
            alike = ssim_map(self.x, total / times)  # a round hides every token, so that times is above 0
            alike = F.interpolate(alike[:, None], (self.grid, self.grid), mode="nearest")
            by_image += 1 - alike.reshape(n, -1).double().numpy()
        return by_image / how.rounds, by_label / (how.rounds * how.masks)

    def refined(self, scores: F64, sizes: npt.NDArray[np.int_]) -> F64:
        """Scores after the refinements; `sizes` (n,) has each picture's L."""
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
        """float (n, 3, H, W): the picture, restored where the lowest cut finds a trigger."""
        how = self.how
        below = 1 - how.cuts + how.spacing * np.arange(how.count)[None].repeat(len(scores), 0)  # 1 - cut
        for _ in range(200):
            below[(scores >= 1 - below[:, -1:]).mean(1) >= how.most] *= 0.99
        total, times = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for cut in 1 - below.T:
            restored, gone = self.restored(scores >= cut[:, None])
            total += gone * restored
            times += gone
        return torch.where(times > 0, total / times.clamp_min(1), self.x)

    def restored(self, hidden: Bools) -> tuple[Tensor, Tensor]:
        """The pictures with their hidden tokens restored, float (n, 3, H, W); where that is, 0. or 1., (n, 1, H, W)."""
        at, size = torch.from_numpy(hidden), tuple(self.x.shape[2:])
        y = self.how.restorer(self.seen, at)
        if y.shape != self.seen.shape or not torch.isfinite(y).all():
            raise ModelError(
                f"restorer: got {tuple(y.shape)} with {int((~torch.isfinite(y)).sum())} numbers that are not finite, "
                f"wanted {tuple(self.seen.shape)}, all finite; its weights may be damaged"
            )
        gone = F.interpolate(at.view(-1, 1, self.grid, self.grid).float(), size, mode="nearest")
        if y.shape != self.x.shape:
            y = F.interpolate(y, size, mode="nearest")
        return torch.where(gone > 0, y.clamp(0, 1), self.x), gone

    def labels_of(self, x: Tensor) -> npt.NDArray[np.intp]:
        scores = np.asarray(self.classify(_to_u8(x)))
        if scores.ndim != 2 or len(scores) != len(x) or not np.isfinite(scores).all():
            raise ModelError(
                f"classifier: got {scores.dtype} {scores.shape} for {len(x)} pictures, wanted finite scores, a row each"
            )
        return scores.argmax(1)


def generator(seed: int, picture: U8) -> np.random.Generator:
    """A picture's own chance."""
    digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
    return np.random.default_rng([seed % 2**64, int.from_bytes(digest[:8], "little")])


def random_masks(rng: np.random.Generator, tokens: int, masks: int, share: float) -> Bools:
    """A round of masks that hide a share of the tokens, or a little less: bool (masks, tokens).

    Permutations of the tokens, one after another, are dealt to the masks. So all tokens are hidden equally often, give
    or take one; but a mask that gets the end of one permutation and the beginning of the next may be dealt a token
    twice, as in the released code.
    """
    size = int(tokens * share)
    dealt = np.concatenate([rng.permutation(tokens) for _ in range(masks)])
    out = np.zeros((masks, tokens), bool)
    np.put_along_axis(out, dealt[: masks * size].reshape(masks, size), True, axis=1)
    return out


def highest(scores: F64, sizes: npt.NDArray[np.int_]) -> Bools:
    """In each row the `sizes` (n,) highest scores, of equal ones the first: bool (n, tokens)."""
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return place < sizes[:, None]


def neighbours(grid: int) -> Bools:
    """Which tokens share a side: bool (tokens, tokens)."""
    y, x = np.divmod(np.arange(grid**2), grid)
    return np.abs(y[:, None] - y) + np.abs(x[:, None] - x) == 1


def chosen_together(
    rng: np.random.Generator, scores: F64, top: Bools, size: int, beside: Bools, topology: float
) -> Bools:
    """`size` of the tokens in `top`, one after another, each by chance u * (score + topology if beside a chosen one).

    The largest such product is taken, u uniform in [0, 1).
    """
    chosen, near = np.zeros_like(top), np.zeros_like(top)
    for _ in range(size):
        chance = rng.random(len(scores)) * (scores + topology * near)
        best = np.argmax(np.where(top & ~chosen, chance, -np.inf))
        chosen[best] = True
        near |= beside[best]
    return chosen


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM around every pixel, mean of the colours: float (N, 3, H, W) twice, in [0, 1] -> (N, H, W).

    Wang et al. 2004: an 11 x 11 Gaussian window of deviation 1.5, k = 0.01 and 0.03. Edge pixels are repeated outwards.
    """
    at = torch.arange(-5, 6, dtype=x.dtype)
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window /= window.sum()

    def mean(z: Tensor) -> Tensor:
        z = F.pad(z.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="replicate")
        return F.conv2d(F.conv2d(z, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view(x.shape)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(1)


def _to_u8(x: Tensor) -> U8:
    """float (n, 3, H, W) in [0, 1] -> uint8 (n, H, W, 3)."""
    return np.ascontiguousarray((x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
