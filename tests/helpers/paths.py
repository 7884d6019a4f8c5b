"""Folders that tests read."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).parents[2]
#: Data, the paper and example inputs beside the checkout; tests that need them skip where they are absent.
SHARED = ROOT.parent / "shared"
