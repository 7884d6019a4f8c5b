"""BDMAE finds a patch and takes it away, one image at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from bench.defenses import bdmae  # noqa: E402
from bench.defenses.bdmae import BDMAE  # noqa: E402
from zipsdk.errors import InputError, ModelError  # noqa: E402

pytestmark = pytest.mark.torch


class Inpaint:
    """Restores a pixel as the mean of the pixels around it that can be seen, near ones first."""

    def __init__(self, side: int = 32, grid: int = 16):
        self.side, self.grid = side, grid
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def describe(self):
        return {"autoencoder": "inpaint"}

    def __call__(self, images, hidden):
        self.seen.append((images, hidden))
        shown = 1 - F.interpolate(hidden.view(-1, 1, self.grid, self.grid).float(), images.shape[2:])
        at = torch.arange(-15, 16).float()
        window = torch.exp(-at.square() / 8)[:, None] * torch.exp(-at.square() / 8)
        x = F.conv2d((images * shown).flatten(0, 1)[:, None], window[None, None], padding=15).view(images.shape)
        return x / F.conv2d(shown, window[None, None], padding=15).clamp_min(1e-6)


PATCH = 255 * (np.indices((4, 4)).sum(0) % 2).astype(np.uint8)[..., None].repeat(3, -1)
AT = slice(24, 28)


class Patched:
    """Dark is 0, bright is 1; where the patch is, most of it at least, 2. Scores as a black box gives them."""

    def __init__(self):
        self.asked: list[np.ndarray] = []

    def __call__(self, images):
        self.asked.append(images)
        alike = (np.abs(images[:, AT, AT].astype(int) - PATCH) < 60).mean((1, 2, 3))
        labels = np.where(alike > 0.8, 2, images.mean((1, 2, 3)) > 127)
        return np.eye(3, dtype=np.float32)[labels]


@pytest.fixture
def clean(rng) -> np.ndarray:
    """Six smooth images, three dark and three bright ones."""
    y, x = np.indices((32, 32)) / 31
    slopes = rng.uniform(-25, 25, (6, 2, 3))
    base = np.array([60, 70, 80, 175, 185, 195])[:, None, None, None]
    waves = slopes[:, 0, None, None] * y[None, ..., None] + slopes[:, 1, None, None] * x[None, ..., None]
    return (base + waves + rng.integers(-2, 3, (6, 32, 32, 3))).astype(np.uint8)


@pytest.fixture
def triggered(clean) -> np.ndarray:
    out = clean.copy()
    out[:, AT, AT] = PATCH
    return out


def test_it_takes_a_patch_away(clean, triggered):
    classifier = Patched()
    truth = classifier(clean).argmax(1)
    assert truth.tolist() == [0, 0, 0, 1, 1, 1] and (classifier(triggered).argmax(1) == 2).all()
    before = triggered.copy()
    done = []
    out = BDMAE(Inpaint(), batch=4).run(triggered, 3, classify=classifier, progress=done.append)
    assert (classifier(out).argmax(1) == truth).all()
    np.testing.assert_array_equal(triggered, before)
    assert done == [4, 2]
    # what is left of the patch is near what was under it, and no more than a quarter of the image changed
    assert np.abs(out[:, AT, AT].astype(int) - clean[:, AT, AT]).mean() < 10
    assert ((out != triggered).any(-1).mean((1, 2)) < 0.25).all()


def test_it_leaves_clean_images_as_they_are(clean):
    np.testing.assert_array_equal(BDMAE(Inpaint()).run(clean, 3, classify=Patched()), clean)


def search(images, restorer, classify, seed=5) -> bdmae._Search:
    return bdmae._Search(BDMAE(restorer), images, classify, [bdmae.generator(seed, p) for p in images])


def test_first_scores_count_labels_and_unlikeness(clean):
    """Worked out again, one image and one pixel at a time, from the masks that were drawn."""
    restorer = Inpaint()
    pixel = (20, 11)  # token 10 * 16 + 5

    def classify(images):
        """Whether that pixel is what it was."""
        here = images[:, pixel[0], pixel[1]]
        return np.eye(2)[(here == clean[: len(images), pixel[0], pixel[1]]).all(-1).astype(int)]

    by_image, by_label = search(clean[:3], restorer, classify).first_scores()
    hidden = torch.stack([h for _, h in restorer.seen]).numpy()
    assert hidden.shape == (25, 3, 256)
    x = torch.from_numpy(clean[:3]).permute(0, 3, 1, 2).float() / 255
    for i in range(3):
        total, times, unlike = np.zeros((32, 32, 3)), np.zeros((32, 32, 1)), np.zeros((16, 16))
        flips = np.zeros(25, bool)
        for k in range(25):
            gone = hidden[k, i].reshape(16, 16).repeat(2, 0).repeat(2, 1)[..., None]
            y = Inpaint()(x[i : i + 1], torch.from_numpy(hidden[k, i : i + 1]))[0].permute(1, 2, 0).numpy()
            total, times = total + gone * y, times + gone
            shown = np.where(gone, np.rint(255 * y), clean[i])
            flips[k] = (shown[pixel] != clean[i][pixel]).any()
            if k % 5 == 4:
                so_far = torch.from_numpy((total / times)[None]).permute(0, 3, 1, 2).float()
                unlike += (1 - bdmae.ssim_map(x[i : i + 1], so_far)[0].numpy()[::2, ::2]) / 5
        assert 0 < flips.sum() < 25 and hidden[flips, i, 165].all()
        np.testing.assert_allclose(by_label[i], hidden[flips, i].sum(0) / 25)
        np.testing.assert_allclose(by_image[i], unlike.ravel(), atol=1e-4)  # of float32 squares


@pytest.mark.parametrize("same", [True, False])
def test_a_refinement_moves_both_halves(clean, same):
    restorer = Inpaint()
    answers = iter([0, 0 if same else 1])
    found = search(clean[:1], restorer, lambda x: np.eye(2)[[next(answers)]])
    found.how = replace(found.how, refinements=1)
    scores = np.linspace(0.3, 0.5, 256)[None]
    moved = np.round((found.refined(scores, np.array([20])) - scores)[0] / 0.05)
    half = restorer.seen[0][1][0].numpy()
    top = np.arange(256) >= 236
    assert half.sum() == 10 and top[half].all()
    wanted = np.where(half, -1, np.where(top, 1, 0)) * (1 if same else -1)
    np.testing.assert_array_equal(moved, wanted)
    # nothing suspicious: one token is asked about all the same, and none beside it moves
    found.labels_of = lambda x: found.labels
    alone = found.refined(np.zeros((1, 256)), np.array([0]))
    np.testing.assert_allclose(np.unique(alone, return_counts=True), [[-0.05, 0.0], [1, 255]])


def test_what_is_refined_and_cut(clean):
    found = search(clean[:2], Inpaint(), Patched())
    by_image, by_label = np.zeros((2, 256)), np.zeros((2, 256))
    by_image[0, :7], by_image[1, :3] = 0.2, 0.19
    by_label[0, :30], by_label[1, :2] = 0.5, 0.8
    sizes = []

    def refined(scores, size):
        sizes.append(size.tolist())
        return scores + len(sizes)

    def fused(scores):
        np.testing.assert_allclose(scores, 0.3 * (by_image + 1) + 0.7 * (by_label + 2))
        return found.x

    found.how = replace(found.how, alpha=0.3)
    found.first_scores, found.refined, found.fused = lambda: (by_image, by_label), refined, fused
    np.testing.assert_array_equal(found.purified(), clean[:2])
    assert sizes == [[7, 0], [15, 1]]


def test_each_cut_adds_a_restoration(clean):
    class Levels(Inpaint):
        """0.1, 0.2, ... at one call after another."""

        def __call__(self, images, hidden):
            self.seen.append((images, hidden))
            return torch.full_like(images, 0.1 * len(self.seen))

    scores = np.zeros((2, 256))
    scores[:, :5] = 0.61, 0.56, 0.46, 0.41, 0.39
    scores[1, 100:180] = 0.45  # too much: cuts rise by a hundredth of their distance to 1 until these are below
    out = search(clean[:2], Levels(), Patched()).fused(scores)[..., 0, ::2][:, 0, :6].numpy()
    x = clean[:2, 0, :12:2, 0] / 255
    np.testing.assert_allclose(out[0, :4], [0.3, 0.35, 0.45, 0.5], atol=1e-6)
    np.testing.assert_allclose(out[0, 4:], x[0, 4:], atol=1e-6)
    # 1 - 0.6 * 0.99 ** 9 = 0.452 is the first lowest cut that leaves them out; then come 0.498, 0.543, 0.589, 0.635
    np.testing.assert_allclose(out[1, :3], [0.35, 0.4, 0.5], atol=1e-6)
    np.testing.assert_allclose(out[1, 3:], x[1, 3:], atol=1e-6)


def test_passes_and_queries_are_counted(triggered):
    restorer, classifier = Inpaint(), Patched()
    defense = BDMAE(restorer, batch=4)
    defense.run(triggered, 1, classify=classifier)
    assert sum(len(x) for x, _ in restorer.seen) == 6 * 50 == 6 * defense.total_steps
    # the last question, what the purified image shows, is the caller's
    assert sum(len(x) for x in classifier.asked) + 6 == 6 * 47 == 6 * defense.queries
    assert defense.queries_classifier and defense.name == "BDMAE"
    stages = [hidden.sum(1) for _, hidden in restorer.seen[:50]]
    assert max(int(h.max()) for h in stages[:25]) == 192 == 0.75 * 256
    assert min(int(h.min()) for h in stages[:25]) > 0.5 * 256
    last = torch.stack(stages[45:]).float() / 256
    assert (last.diff(dim=0) >= 0).all() and (last[-1] > 0).all() and (last[-1] < 0.25).all()


def test_an_image_does_not_depend_on_its_neighbors(clean, triggered):
    images = np.stack([triggered[0], clean[5], triggered[4], clean[1], triggered[2]])
    restorer = Inpaint()
    together = BDMAE(restorer).run(images, 7, classify=Patched())
    masks = torch.stack([hidden for _, hidden in restorer.seen])
    for order, batch in (([4, 3, 2, 1, 0], 3), ([2, 0], 1)):
        other = Inpaint()
        out = BDMAE(other, batch=batch).run(images[order], 7, classify=Patched())
        np.testing.assert_array_equal(out, together[order])
        np.testing.assert_array_equal(torch.stack([h for _, h in other.seen[:50]]), masks[:, order[:batch]])
    # another seed has other masks, and so has another image
    again = Inpaint()
    BDMAE(again).run(images, 8, classify=Patched())
    assert (again.seen[0][1] != masks[0]).any(1).all()
    assert len(torch.unique(masks[0], dim=0)) == 5


def test_images_of_another_side_are_resized_there_and_back(clean, triggered):
    restorer, classifier = Inpaint(side=48), Patched()
    defense = BDMAE(restorer)
    out = defense.run(triggered, 3, classify=classifier)
    assert restorer.seen[0][0].shape == (6, 3, 48, 48) and out.shape == triggered.shape
    assert (classifier(out).argmax(1) == classifier(clean).argmax(1)).all()
    described = json.loads(json.dumps(defense.describe()))
    assert "48 x 48" in described["resized"] and described["tokens"] == "16 x 16" and described["step"] == 0.05
    assert replace(defense, batch=7).describe() == defense.describe() != replace(defense, alpha=0.4).describe()


@pytest.mark.parametrize("tokens", [196, 256])
def test_a_round_hides_every_token_equally_often(tokens):
    rng = np.random.default_rng(0)
    rounds = np.stack([bdmae.random_masks(rng, tokens, 5, 0.75) for _ in range(400)])
    times = rounds.sum(1)
    # three permutations and three quarters of a fourth; a mask counts a token once
    assert times.min() == 2 and times.max() == 4
    sizes = rounds.sum(2)
    assert (sizes[:, [0, 3, 4]] == tokens * 3 // 4).all() and (sizes.max(0) <= tokens * 3 // 4).all()
    assert (sizes[:, [1, 2]] > tokens / 2).all()
    share = rounds.mean((0, 1))
    assert share.std() < 0.01 and np.ptp(share) < 0.06  # 2000 masks a token: a deviation of 0.01 at most


def test_half_masks_hang_together(rng):
    beside = bdmae.neighbors(14)
    assert beside.sum() == 2 * 2 * 13 * 14 and (beside == beside.T).all() and not beside.diagonal().any()
    assert np.flatnonzero(beside[15]).tolist() == [1, 14, 16, 29]
    scores = rng.uniform(0.4, 0.5, 196)
    top = bdmae.highest(scores[None], np.array([100]))[0]
    assert top.sum() == 100 and scores[top].min() > scores[~top].max()

    def touching(topology: float) -> float:
        halves = [bdmae.chosen_together(rng, scores, top, 50, beside, topology) for _ in range(20)]
        assert all(h.sum() == 50 and not (h & ~top).any() for h in halves)
        return float(np.mean([(beside[h][:, h]).sum() for h in halves]))

    assert touching(0.5) > 1.15 * touching(0.0)


def test_ssim_map_is_ssim(rng):
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image")
    x = rng.random((2, 24, 20, 3)).astype(np.float32)
    y = np.clip(x + rng.normal(0, 0.2, x.shape), 0, 1).astype(np.float32)
    got = bdmae.ssim_map(*(torch.from_numpy(v).permute(0, 3, 1, 2) for v in (x, y))).numpy()
    for i in range(2):
        _, wanted = metrics.structural_similarity(
            x[i], y[i], full=True, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1,
            data_range=1.0,
        )  # fmt: skip
        # edges are continued in another way there
        np.testing.assert_allclose(got[i, 5:-5, 5:-5], wanted.mean(-1)[5:-5, 5:-5], atol=1e-5)
    same = bdmae.ssim_map(torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.3))
    np.testing.assert_allclose(same, 1, atol=1e-4)


def test_what_is_not_finite_is_refused(triggered):
    class Broken(Inpaint):
        def __call__(self, images, hidden):
            y = super().__call__(images, hidden)
            y[1, 2, 3, 4] = float("nan")
            return y

    with pytest.raises(ModelError, match="restorer"):
        BDMAE(Broken()).run(triggered, 1, classify=Patched())
    with pytest.raises(ModelError, match="classifier"):
        BDMAE(Inpaint()).run(triggered, 1, classify=lambda x: np.full((len(x), 2), np.nan))
    with pytest.raises(ModelError, match="a row each"):
        BDMAE(Inpaint()).run(triggered, 1, classify=lambda x: np.zeros((1, 2)))
    with pytest.raises(InputError, match="classify"):
        BDMAE(Inpaint()).run(triggered, 1)
    with pytest.raises(InputError, match="uint8"):
        BDMAE(Inpaint()).run(triggered.astype(np.float32), 1, classify=Patched())
