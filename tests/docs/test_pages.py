"""Pages that describe the code name what is there, and the site builds without a warning and without the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from bench.pages import cli
from tests.helpers.markdown import blocks
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"


def test_the_options_of_every_command_are_on_its_page():
    text = cli.PAGE.read_text()
    assert text == cli.page(text), "docs/cli.md: out of date; run python -m bench.pages.cli"


def test_every_option_is_in_the_tables():
    text = cli.commands()
    for name, parser in cli.parsers().items():
        assert f"## zipsdk {name}\n" in text
        options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        assert all(re.search(rf"[`>]{option}[ `<]", cli.command(parser)) for option in options)


def test_the_module_map_names_every_module():
    text = (DOCS / "architecture.md").read_text()
    names = {p.name for p in (ROOT / "zipsdk").iterdir() if p.is_dir() or p.suffix == ".py"}
    missing = {n for n in names - {"__init__.py", "__main__.py", "__pycache__"} if not re.search(rf"[`/]{n}[`/]", text)}
    assert missing == set()


def test_the_ladder_is_the_one_that_lint_checks():
    config = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r'"zipsdk\.(.+)"', re.search(r"\nlayers = \[\n((?: +\"zipsdk\..+\n)+)\]", config)[1])
    layers = [layer.replace("zipsdk.", "").replace(" | ", ", ") for layer in layers]
    (ladder,) = [b.text for b in blocks((DOCS / "architecture.md").read_text()) if b.text.startswith(layers[0])]
    assert ladder.split("\n")[:-1] == layers


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 20
    for page in built:
        loaded = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*? (?:src|href)=\"?([^\" >]+)", page.read_text())
        assert loaded
        assert not [url for url in loaded if url.startswith(("http", "//"))], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()[\"' ]*(?:http|//)", sheet.read_text()), sheet
