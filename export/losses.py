"""Compute the training loss of a diffusion model, v or epsilon with min-SNR weights, and check that it fell."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .unet import UNet

#: Runs of fewer optimizer steps are not checked for convergence: their losses differ by the noise levels drawn.
FEWEST_JUDGED = 20


def add_noise(x0: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise images.

    Args:
        x0: float (N, 3, H, W) in [-1, 1].
        t: int (N,), time steps.
        alphas_cumprod: float (T,).

    Returns:
        x_t = sqrt(ab) x0 + sqrt(1 - ab) eps, the noise eps, both like x0, and ab (N, 1, 1, 1).
    """
    ab = alphas_cumprod[t][:, None, None, None]
    eps = torch.randn_like(x0)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps, eps, ab


def draw_steps(n: int, timesteps: int, device: torch.device) -> Tensor:
    """Draw the time steps of a batch, int64 (n,) in 0..timesteps-1.

    Half are uniform, half have a density that falls as 1/sqrt(t): above t = 400 the guidance fixes nearly all of a
    restored image, so the low noise levels decide its details. The draw is stratified: every batch spans the range.
    """
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    u = torch.where(torch.rand(n, device=device) < 0.5, u, u * u)
    return (u * timesteps).long().clamp(0, timesteps - 1)


def loss_fn(model: UNet, x0: Tensor, gamma: float) -> Tensor:
    """Compute the loss of a batch at random time steps and with random noise.

    The loss is that of v with min-SNR weights min(SNR, gamma) / (SNR + 1) (Hang et al. 2023, arXiv 2303.09556). A model
    that predicts epsilon has the same loss in terms of epsilon, with weights min(SNR, gamma) / SNR.

    Args:
        model: predicts "v" or "epsilon".
        x0: float (N, 3, H, W) in [-1, 1], on the model's device.
        gamma: upper bound of the SNR in the weights.

    Returns:
        The mean, a scalar.
    """
    t = draw_steps(len(x0), model.config.timesteps, x0.device)
    x_t, eps, ab = add_noise(x0, t, model.alphas_cumprod)
    with torch.autocast(x0.device.type, torch.bfloat16):
        out = model.network(x_t, t)
    v = model.config.prediction == "v"
    target = ab.sqrt() * eps - (1 - ab).sqrt() * x0 if v else eps
    return (min_snr_weight(ab, gamma, v) * (out.float() - target).square()).mean()


def min_snr_weight(ab: Tensor, gamma: float, v: bool) -> Tensor:
    """Compute the weight of each alpha-bar in the loss of a model that predicts v, or epsilon."""
    snr = ab / (1 - ab)
    return snr.clamp(max=gamma) / (snr + 1 if v else snr)


def zero_loss(model: UNet, gamma: float, power: float) -> float:
    """Compute the expected `loss_fn` of a network that always returns zero.

    Args:
        model: only its schedule and its prediction type matter.
        gamma: as in `loss_fn`.
        power: mean square of the images' values.
    """
    ab = model.alphas_cumprod.double().cpu()
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = ab[(torch.cat([u, u * u]) * len(ab)).long()]  # the density of `draw_steps`
    v = model.config.prediction == "v"
    target = drawn + (1 - drawn) * power if v else torch.ones_like(drawn)
    return float((min_snr_weight(drawn, gamma, v) * target).mean())


def check_losses(values: list[float], zero: float, fresh: bool, lr: float) -> None:
    """Warn if a run did not converge.

    A run converged if its loss ended below that of a network that returns zero and, if it started from random weights,
    below its own first losses.

    Args:
        values: loss of each optimizer step.
        zero: `zero_loss`.
        fresh: whether the run started from random weights.
        lr: peak learning rate, for the message.
    """
    if len(values) < FEWEST_JUDGED:
        return
    part = max(FEWEST_JUDGED // 4, len(values) // 10)
    first, last = (sum(v) / len(v) for v in (values[:part], values[-part:]))
    if last < zero and (last < first or not fresh):
        return
    warnings.warn(
        f"training did not converge: got loss {first:.3g} -> {last:.3g}, expected it to fall, and to end below "
        f"{zero:.3g}, the loss of a network that returns zero; lower the learning rate (--lr {lr:.3g}) or train longer "
        "(--samples)",
        UserWarning,
        stacklevel=3,
    )
