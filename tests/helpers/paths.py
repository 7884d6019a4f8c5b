"""Locate the folders that tests read."""

from pathlib import Path

#: The root of the repository.
ROOT = Path(__file__).parents[2]
#: Data, the paper and example inputs beside the checkout; tests that need them skip where they are absent.
SHARED = ROOT.parent / "shared"
