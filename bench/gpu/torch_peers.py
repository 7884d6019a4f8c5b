"""The torch modules that `bench.gpu.loop` measures, and the loop in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu.torch_bodies import paper_body
from export import checkpoints
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.schedule import step_table


def torch_module(random_adm: bool = False, channels: int = 256, precision: str = "fp32") -> tuple[Any, ModelSpec]:
    """Load zip-tiny, or make OpenAI's architecture with random weights, in torch; return the module and its spec."""
    if random_adm:
        module = checkpoints.random_adm(channels)
        name = f"adm256-{channels}ch-random-weights"
    else:
        module, _ = checkpoints.load(Path(__file__).parents[2] / "export" / "zip-tiny.safetensors")
        name = "zip-tiny"
    config = module.config
    flexible = not config.attention_downsampling
    if precision != "fp32":
        module.to_torso({"fp16": torch.float16, "bf16": torch.bfloat16}[precision])
    spec = ModelSpec(
        name=name,
        image_size=config.image_size,
        multiple=config.downsampling,
        precision=precision,
        min_side=32 if flexible else config.image_size,
        max_side=512 if flexible else config.image_size,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        timesteps=config.timesteps,
        betas=config.betas,
    )
    return module, spec


def torch_peers(module: Any, where: str, spec: ModelSpec, compiled: bool) -> dict[str, Any]:
    """Make the loop in plain torch: eager, eager without copies to the host, and compiled."""
    table = step_table(spec, lam=10.0)
    module = module.to(where).eval().requires_grad_(False)

    def loop(body: Any, carry: bool) -> Callable[[np.ndarray], np.ndarray]:
        @torch.inference_mode()
        def purify(rgb: np.ndarray) -> np.ndarray:
            x_p = torch.from_numpy(rgb).to(where).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
            x = torch.randn_like(x_p)
            for step in table.steps:
                t = torch.full((len(x),), float(step.t), device=where)
                x = body(x, t, x_p, step, torch.randn_like(x) if step.s else None)
                if carry:
                    x = x.to("cpu").to(where)
            out = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            return np.asarray(out.permute(0, 2, 3, 1).cpu().numpy())

        return purify

    def eager(x: Any, t: Any, x_p: Any, step: Any, z: Any) -> Any:
        return paper_body(x, module(x, t), x_p, step, z)

    peers = {"eager": loop(eager, True), "eager, x_t stays": loop(eager, False)}
    if compiled:
        network, body = torch.compile(module), torch.compile(paper_body)
        peers["compiled"] = loop(lambda x, t, x_p, step, z: body(x, network(x, t), x_p, step, z), False)
    return peers
