"""Compute noise schedules as their papers print them, one step at a time."""

from __future__ import annotations

import math


def linear(i, timesteps, start, end):
    """Compute beta as in Ho et al. 2020, section 4."""
    return start + (end - start) * i / (timesteps - 1)


def scaled_linear(i, timesteps, start, end):
    """Compute beta as in Rombach et al. 2022: linear in its root."""
    return linear(i, timesteps, math.sqrt(start), math.sqrt(end)) ** 2


def cosine(i, timesteps, start, end):
    """Compute beta as in Nichol & Dhariwal 2021, equation 17 and the bound below it; t = i + 1."""

    def f(t):
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    return min(1 - f(i + 1) / f(i), 0.999)


FORMULAS = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def oracle(formula, timesteps, start, end):
    """Return alpha-bar of every time step, by multiplication."""
    products, ab = [], 1.0
    for i in range(timesteps):
        ab *= 1 - formula(i, timesteps, start, end)
        products.append(ab)
    return products
