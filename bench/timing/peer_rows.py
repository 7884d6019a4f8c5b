"""Rows (e) and (f) of `bench.speed`: what others have published, from `bench.defenses.base`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.timing.zip_rows import SEED, TRANSFORMS, U8, Bench, LeftOut, Row, Work, resized
from zipsdk.errors import MissingExtra


def peers(bench: Bench, classify: Callable[[U8], Any]) -> Iterator[Row]:
    """BDMAE, which asks the classifier, and the diffusion peers at their published steps, one picture to a canvas."""
    t_star = 100 if bench.canvas <= 32 else 150

    def diffpure(steps: int) -> Any:
        from bench.defenses.diffpure import DiffPure

        return DiffPure(bench.engine, t_star, steps=steps)

    def ddnm(steps: int) -> Any:
        from bench.defenses.ddnm import DDNM

        return DDNM(bench.engine, TRANSFORMS, steps=steps)

    def sampdetox(steps: int) -> Any:
        from bench.defenses.sampdetox import SampDetox

        return SampDetox(bench.engine, budget=steps)

    yield _bdmae(bench, classify)
    for key, name, evaluations, build in (
        ("diffpure", f"DiffPure, t* {t_star}", t_star, diffpure),
        ("ddnm", "DDNM, 100 steps", 100, ddnm),
        ("sampdetox", "SampDetox, t1 20, t2 120", 140, sampdetox),
    ):
        yield _peer(bench, key, f"{name}, 1 to a {bench.canvas} canvas", evaluations, build)


def _peer(bench: Bench, key: str, label: str, evaluations: int, build: Callable[[int], Any]) -> Row:
    part = min(bench.args.peer_steps or evaluations, evaluations)

    def make() -> Work:
        try:
            defence = build(part)
        except ImportError as e:
            raise LeftOut(f"{e}") from e
        pictures = resized(bench.some(1), bench.canvas)
        runs = {**bench.runs(bench.runner("whole")), "loop": "host"}
        return Work(lambda: defence.run(pictures, SEED), runs)  # ZIP's rows have warmed the UNet

    return Row(key, "f", label, 1, evaluations, make, min(3, bench.args.rounds), part, "on ZIP's UNet")


def _bdmae(bench: Bench, classify: Callable[[U8], Any]) -> Row:
    """At the picture's own side, resized to the autoencoder's as published; it asks the classifier too."""
    quick = bench.args.measure is not None

    def make() -> Work:
        torch = bench.torch
        try:
            from bench.defenses.bdmae import BDMAE
            from bench.defenses.vit_mae import random_vit_mae, vit_mae

            folder = bench.args.mae
            restorer = vit_mae(folder, bench.where) if folder else random_vit_mae(bench.where)
        except (ImportError, MissingExtra) as e:
            raise LeftOut(str(e)) from e
        # 5 + 4 + 1 of 25 + 20 + 5: half of the passes hide much, which is cheaper, and half little, as in full
        defence = BDMAE(restorer, rounds=1, refinements=2, count=1) if quick else BDMAE(restorer)
        first = BDMAE(restorer, rounds=1, refinements=0, count=1)
        picture = bench.some(1)
        runs = {"engine": f"torch {torch.__version__.split('+')[0]}, eager", "providers": [bench.where],
                "precision": "fp32", "threads": torch.get_num_threads()}  # fmt: skip
        return Work(lambda: defence.run(picture, SEED, classify=classify), runs,
                    lambda: first.run(picture, SEED, classify=classify))  # fmt: skip

    weights = "" if bench.args.mae else "random weights: its time, not its quality"
    return Row("bdmae", "e", "BDMAE, ViT-MAE-base at 224, 1 at once", 1, 50, make, min(3, bench.args.rounds),
               10 if quick else 50, weights)  # fmt: skip
