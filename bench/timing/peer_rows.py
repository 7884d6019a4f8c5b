"""Rows (e) and (f) of `bench.speed`: the published rivals of `bench.defenses`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.timing.setup import SEED, TRANSFORMS, U8, LeftOut, SpeedSetup, TimingRow, Work, resized
from zipsdk.errors import MissingDependencyError


def peers(setup: SpeedSetup, classify: Callable[[U8], Any]) -> Iterator[TimingRow]:
    """List the rows of BDMAE and of the diffusion peers at their published steps, one image to a frame."""
    t_star = 100 if setup.frame <= 32 else 150

    def diffpure(steps: int) -> Any:
        from bench.defenses.diffpure import DiffPure

        return DiffPure(setup.engine, t_star, steps=steps)

    def ddnm(steps: int) -> Any:
        from bench.defenses.ddnm import DDNM

        return DDNM(setup.engine, TRANSFORMS, steps=steps)

    def sampdetox(steps: int) -> Any:
        from bench.defenses.sampdetox import SampDetox

        return SampDetox(setup.engine, budget=steps)

    yield _bdmae(setup, classify)
    for key, name, total_steps, build in (
        ("diffpure", f"DiffPure, t* {t_star}", t_star, diffpure),
        ("ddnm", "DDNM, 100 steps", 100, ddnm),
        ("sampdetox", "SampDetox, t1 20, t2 120", 140, sampdetox),
    ):
        yield _peer(setup, key, f"{name}, 1 to a {setup.frame} frame", total_steps, build)


def _peer(setup: SpeedSetup, key: str, label: str, total_steps: int, build: Callable[[int], Any]) -> TimingRow:
    part = min(setup.args.peer_steps or total_steps, total_steps)

    def make() -> Work:
        try:
            defense = build(part)
        except ImportError as e:
            raise LeftOut(f"{e}") from e
        images = resized(setup.some(1), setup.frame)
        runs = {**setup.runs(setup.runner("whole")), "loop": "host"}
        return Work(lambda: defense.run(images, SEED), runs)  # ZIP's rows have warmed up the UNet

    return TimingRow(key, "f", label, 1, total_steps, make, min(3, setup.args.rounds), part, "on ZIP's UNet")


def _bdmae(setup: SpeedSetup, classify: Callable[[U8], Any]) -> TimingRow:
    """Make the row of BDMAE, at the image's own side, resized to the autoencoder's as published."""
    quick = setup.args.measure is not None

    def make() -> Work:
        torch = setup.torch
        try:
            from bench.defenses.bdmae import BDMAE
            from bench.defenses.vit_mae import random_vit_mae, vit_mae

            folder = setup.args.mae
            restorer = vit_mae(folder, setup.where) if folder else random_vit_mae(setup.where)
        except (ImportError, MissingDependencyError) as e:
            raise LeftOut(str(e)) from e
        # 5 + 4 + 1 of 25 + 20 + 5 passes: half hide many tokens, which is cheaper, and half few, as in full
        defense = BDMAE(restorer, rounds=1, refinements=2, count=1) if quick else BDMAE(restorer)
        first = BDMAE(restorer, rounds=1, refinements=0, count=1)
        image = setup.some(1)
        runs = {"engine": f"torch {torch.__version__.split('+')[0]}, eager", "providers": [setup.where],
                "precision": "fp32", "threads": torch.get_num_threads()}  # fmt: skip
        return Work(lambda: defense.run(image, SEED, classify=classify), runs,
                    lambda: first.run(image, SEED, classify=classify))  # fmt: skip

    weights = "" if setup.args.mae else "random weights: its time, not its quality"
    return TimingRow("bdmae", "e", "BDMAE, ViT-MAE-base at 224, 1 at once", 1, 50, make, min(3, setup.args.rounds),
               10 if quick else 50, weights)  # fmt: skip
