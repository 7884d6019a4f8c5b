"""Rows (b), (c) and (g) of `bench.speed`: ZIP's purifier, and the same loop in torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.common.metrics import compare
from bench.timing.setup import SEED, U8, Reference, SpeedSetup, TimingRow, Work, resized
from zipsdk.presets import PRESETS, PresetName
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import PAPER_STEPS

KINDS = {
    "authors": "authors' loop, eager torch",
    "eager": "clean loop, eager torch",
    "scheduler": "scheduler pipeline, eager torch",
    "compiled": "clean loop, torch.compile",
}


def zip_rows(setup: SpeedSetup) -> list[TimingRow]:
    """List the rows of ZIP and of the torch loops, in the order of their turns."""
    side, frame, tiles = setup.side, setup.frame, setup.tiles
    one, many = f"1 to a {frame} frame", f"{tiles} to a {frame} frame"
    rows = [_zip_row(setup, "whole", "b", f"ZIP, {one}", "whole", 1)]
    if tiles > 1:
        rows.append(_zip_row(setup, "tiled", "c", f"ZIP, {many}", "tiled", tiles))
    rows.append(_zip_row(setup, "whole-fast", "b", f"ZIP fast, {one}", "whole", 1, "fast"))
    if tiles > 1:
        rows.append(_zip_row(setup, "tiled-fast", "c", f"ZIP fast, {many}", "tiled", tiles, "fast"))
    for kind, name in KINDS.items():
        if kind != "compiled" or setup.args.compile:
            rows.append(_torch_row(setup, kind, f"{name}, {one}", kind, 1, frame))
    if setup.spec.flexible and side < frame:
        for n in (1, tiles):
            here = f"{n} of {side} px at own size"
            rows.append(_zip_row(setup, f"own-{n}", "c", f"ZIP, {here}", "own", n))
            for kind in ("authors", "eager"):
                rows.append(_torch_row(setup, f"{kind}-{n}", f"{KINDS[kind]}, {here}", kind, n, side))
    return rows


def _zip_row(
    setup: SpeedSetup, key: str, letter: str, label: str, how: str, n: int, preset: PresetName = "paper"
) -> TimingRow:
    total_steps = PRESETS[preset].steps
    part = min(setup.args.measure or total_steps, total_steps)
    images, ids = setup.some(n), np.arange(n)

    def make() -> Work:
        runner, first = (setup.runner(how, preset=preset, steps=k) for k in (part, 1))

        def check() -> dict[str, Any]:
            steps = min(setup.args.check, total_steps)
            reference = Reference(setup.spec, setup.module, setup.where)
            got, expected = (
                setup.runner(how, preset=preset, steps=steps, seed=SEED, engine=engine).run(images, noise_keys=ids)
                for engine in (None, reference)
            )
            return {**compare(got, expected), "total_steps": steps}

        return Work(lambda: runner.run(images), setup.runs(runner), lambda: first.run(images), check)

    return TimingRow(key, letter, label, n, total_steps, make, setup.args.rounds, part)


def _torch_row(setup: SpeedSetup, key: str, label: str, kind: str, n: int, side: int) -> TimingRow:
    part = min(setup.args.measure or PAPER_STEPS, PAPER_STEPS)
    spec = setup.spec

    def make() -> Work:
        torch = setup.torch
        from bench.timing.torch_loops import FIRST, Loop, schedule

        betas = (spec.beta_start, spec.beta_end, spec.timesteps)
        loop = Loop(setup.module, kind, part, setup.where, betas)
        images, ids = resized(setup.some(n), side), np.arange(n)

        def run_steps(steps: int, *draw: Any) -> U8:
            """Run the loop with another number of steps."""
            rows, loop.rows = loop.rows, schedule(steps, *betas)
            try:
                return loop(images, *draw)
            finally:
                loop.rows = rows

        def check() -> dict[str, Any]:
            def draw(t: int) -> Any:
                z = Noise(SEED, ids.astype(np.uint64)).normal(STEP_INITIAL if t == FIRST else t, side, side)
                return torch.from_numpy(z).to(setup.where)

            steps = min(setup.args.check, PAPER_STEPS)
            reference = setup.runner("own", steps=steps, seed=SEED, engine=Reference(spec, setup.module, setup.where))
            return {**compare(run_steps(steps, draw), reference.run(images, noise_keys=ids)), "total_steps": steps}

        runs = {
            "engine": f"torch {torch.__version__.split('+')[0]}, {'torch.compile' if kind == 'compiled' else 'eager'}",
            "providers": [setup.where],
            "precision": "fp32",
            "threads": torch.get_num_threads(),
        }
        # torch.compile may compile a second time at the second step
        return Work(lambda: loop(images), runs, lambda: run_steps(2), check)

    note = "our own scheduler in the interface of diffusers'" if kind == "scheduler" else ""
    return TimingRow(key, "g", label, n, PAPER_STEPS, make, setup.args.rounds, part, note)
