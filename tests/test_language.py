"""The words of the project: American English and the field's terms (a word of its own is one more thing to learn)."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.helpers.paths import ROOT

#: Words that the project does not use, with the word that it uses.
WORDS = {
    "picture": "image",
    "grey": "gray",
    "colour": "color",
    "defence": "defense",
    "neighbour": "neighbor",
    "licence": "license",
    "canvas": "frame, tile or image_size",
}
#: codespell's own exceptions.
IGNORED = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("ignore-regex"))
#: Texts that are hashed into keys of records and caches, by file, and quotations.
ALLOWED = {
    "bench/attacks/base.py": ('"colours"',),
    "bench/defenses/diffusion.py": ('"canvas": spec.image_size',),
    "bench/evaluation/cache.py": ("picture BLOB", "(made_by, picture)", "SELECT picture", "AND picture IN"),
    "bench/evaluation/search.py": ('.replace("color", "colour").replace("gray", "grey")',),
    "docs/benchmarks/index.md": ("`--defence`",),
    "pyproject.toml": (IGNORED,),
}
#: Names of entries of these texts.
HASHED = ('"defence"', '"pictures"')
#: A command on a page of docs/benchmarks/ as it was recorded.
COMMAND = "- `python -m bench.defense "
#: The history, recorded measurements, the migration of old records, and this file.
SKIPPED = ("CHANGELOG.md", "bench/results/", "bench/common/migrate.py", "tests/test_language.py")


def files() -> list[str]:
    """List the text files of the checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout here")
    endings = (".py", ".md", ".toml", ".h", ".cu", ".cuh", ".cpp", ".txt", ".yaml", ".yml", "Makefile", ".ci/run")
    return [f for f in listed.stdout.split("\n") if f.endswith(endings) and not f.startswith(SKIPPED)]


@pytest.mark.parametrize("word", WORDS)
def test_no_word_of_the_old_dialect_is_left(word):
    found = []
    for name in files():
        text = (ROOT / name).read_text(encoding="utf-8")
        for allowed in ALLOWED.get(name, ()):
            assert allowed in text, f"{name}: {allowed!r} is gone; delete it from ALLOWED"
            text = text.replace(allowed, "")
        for entry in HASHED if name.startswith(("bench/", "tests/bench/")) else ():
            text = text.replace(entry, "")
        for number, line in enumerate(text.split("\n"), 1):
            if re.search(word, line, re.IGNORECASE) and not line.startswith(COMMAND):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, f"got {word!r}, expected {WORDS[word]!r}:\n" + "\n".join(found[:40])
