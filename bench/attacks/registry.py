"""The backdoor attacks by name.

    attack = registry.make("badnets", side=32, seed=1)
    training = poisoning.poison(train, attack, rate=0.05, target=1, seed=1)   # images, labels, poisoned indices
    triggered = attack.apply(test.images)                                   # test images that the attacker sends

All are written from the papers' formulas and, for what the ZIP paper leaves open, from the behavior of its released
code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.attacks.adaptive import TwoPatches
from bench.attacks.base import Attack
from bench.attacks.blended import Blended
from bench.attacks.patches import BadNets, PhysicalBA
from bench.attacks.sig import SIG
from bench.attacks.wanet import WaNet
from zipsdk.errors import InputError


def patch_side(side: int) -> int:
    """Interpolate the ZIP paper's patch sizes: 2 for images of 32 pixels, 9 for 256."""
    return max(2, round(2 + 7 * (side - 32) / 224))


#: The attacks by name, for a side and a seed.
ATTACKS: dict[str, Callable[[int, int], Attack]] = {
    "badnets": lambda side, seed: BadNets(side, seed, patch_side(side)),
    "badnets3": lambda side, seed: BadNets(side, seed, 3 if side <= 128 else 9),
    "white": lambda side, seed: BadNets(side, seed, max(3, patch_side(side)), "white"),
    "redundant": lambda side, seed: TwoPatches(side, seed, max(3, patch_side(side)), "white"),
    "checkerboard": lambda side, seed: BadNets(side, seed, max(3, patch_side(side)), "checkerboard"),
    "blended": lambda side, seed: Blended(side, seed),
    "blended-smooth": lambda side, seed: Blended(side, seed, texture="smooth"),
    "physicalba": lambda side, seed: PhysicalBA(side, seed, patch_side(side)),
    "wanet": lambda side, seed: WaNet(side, seed),
    "sig": lambda side, seed: SIG(side, seed),
}


def make(name: str, side: int, seed: int = 0, patch: int | None = None) -> Attack:
    """Make one of `ATTACKS` for images of `side` x `side` pixels, with patches of `patch` x `patch` if given.

    Raises:
        InputError: no such attack, or a patch that does not fit.
    """
    if name not in ATTACKS:
        raise InputError(f"attack: got {name!r}, expected one of {', '.join(ATTACKS)}")
    attack = ATTACKS[name](side, seed)
    return replace(attack, size=patch) if patch is not None and isinstance(attack, BadNets) else attack
