"""Compare the signatures of all public names with a stored list."""

from __future__ import annotations

from pathlib import Path

from tests.tools.signatures import signatures

STORED = Path(__file__).with_name("signatures.txt")


def test_public_signatures_change_on_purpose_only():
    expected, got = STORED.read_text().splitlines(), signatures().splitlines()
    changed = [f"- {line}" for line in expected if line not in got] + [
        f"+ {line}" for line in got if line not in expected
    ]
    assert got == expected, "\n".join(
        [*changed, "If this is intended: python -m tests.tools.signatures > tests/zipsdk/signatures.txt"]
    )
