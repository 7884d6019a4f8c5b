"""What the pages say was measured is what the records say: a number that was typed, or a page that was not drawn again
(``python -m bench.pages.readme``), shows here."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from bench.common import markdown
from bench.common.markdown import END, ROOT, START, marks
from bench.common.record import RESULTS, read
from bench.pages import notebook, readme, restoration, speed
from bench.pages.results import page

pytestmark = pytest.mark.torch


def measured(*path, name="measured"):
    """What stands between the two marks of a page, which every page has once."""
    start, end = marks(name)
    _, rest = ROOT.joinpath(*path).read_text().split(start)
    block, _ = rest.split(end)
    return block.strip("\n")


@pytest.mark.parametrize(
    ("part", "path", "name"),
    [(readme.results_block, "README.md", "results"), (readme.speed_block, "README.md", "speed"),
     (restoration.measured, "docs/benchmarks/restoration.md", "measured"),
     (speed.measured, "docs/benchmarks/speed.md", "measured"),
     (notebook.search, "docs/research/notebook.md", "measured")],
)  # fmt: skip
def test_each_page_has_its_part_as_it_is_drawn_from_the_records(part, path, name):
    text = part()
    assert len(text) > 200
    assert measured(path, name=name) == text


def test_readme_has_one_small_table_with_a_number_in_each_cell():
    caption, table = readme.results_block().split("\n\n")
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert len(caption.splitlines()) == 3 and len(lines) <= 11
    chosen = [(page.TITLES[dataset], trigger) for dataset, names in readme.TRIGGERS.items() for trigger in names]
    assert [(line[0].split(" (")[0], line[1]) for line in lines[2:]] == chosen
    assert all(len(line) == 11 and all(re.fullmatch(r"\d{1,3}", cell) for cell in line[2:]) for line in lines[2:])
    assert len(readme.speed_block().splitlines()) == 3


@pytest.mark.parametrize(
    ("lacking", "kept"),
    [({}, (True, True)), ({"guard": None, "gates": {}}, (False, True)), ({"gates": {}}, (False, True)),
     ({"guard": None, "gates": {}, "seconds_per_image": {"classify": [1.0]}}, (False, False))],
)  # fmt: skip
def test_of_speed_only_what_was_measured_is_told(monkeypatch, lacking, kept):
    content = {**read("speed"), **lacking}
    monkeypatch.setattr(speed, "read", lambda name: content)
    text = speed.goals()
    assert ("These guards" in text, "rounds: " in text) == kept
    assert text.startswith("## Goals") and content["command"] in text
    assert all(f"| {c['claim']} | {c['wanted']} |" in text for c in content["claims"])


def test_the_card_of_the_bundled_model_has_the_losses_of_its_log():
    log = [json.loads(line) for line in (RESULTS / "zip-tiny-training.jsonl").read_text().splitlines()]
    assert measured("zipsdk", "models", "zip-tiny.md") == readme.losses(log)


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    markdown.replace(page, "new\n\nlines")
    assert page.read_text() == f"before\n{START}\nnew\n\nlines\n{END}\nafter\n"
    markdown.replace(page, "x")
    assert page.read_text() == f"before\n{START}\nx\n{END}\nafter\n"
    page.write_text("<!-- a -->\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\n")
    markdown.replace(page, "x", "b")
    assert page.read_text() == "<!-- a -->\n<!-- /a -->\nbetween\n<!-- b -->\nx\n<!-- /b -->\n"


def test_losses_are_those_of_the_last_line():
    steps = list(range(0, 1000, 50))
    log = [{"samples": n, "steps": steps, "held_out:a": [t * n / 1e6 for t in steps]} for n in (1000, 2000)]
    lines = readme.losses(log).splitlines()
    assert lines[0] == "| after 2,000 samples, t = | 0 | 50 | 100 | 150 | 200 | 300 | 400 | 600 | 800 | 950 |"
    assert lines[2] == "| a | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.6 | 0.8 | 1.2 | 1.6 | 1.9 |" and len(lines) == 3


def test_the_pages_of_the_data_sets_are_drawn_from_their_records(monkeypatch, tmp_path):
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: path.touch())
    monkeypatch.setattr(page, "DOCS", tmp_path)
    for folder in ("benchmarks", "img"):
        (tmp_path / folder).mkdir()
    images = ROOT / "docs" / "img"
    for path in images.glob("*-images.png"):  # sheets are drawn by bench/defense.py
        (tmp_path / "img" / path.name).touch()
    assert page.draw() == [tmp_path / "benchmarks" / f"{dataset}.md" for dataset in page.TITLES]
    for dataset, title in page.TITLES.items():
        drawn = (tmp_path / "benchmarks" / f"{dataset}.md").read_text()
        assert (ROOT / "docs" / "benchmarks" / f"{dataset}.md").read_text() == drawn
        headings = [line for line in drawn.splitlines() if line.startswith("#")]
        assert drawn.startswith(f"# {title}\n") and all(line.startswith("## ") for line in headings[1:])
    assert {path.name for path in (tmp_path / "img").iterdir()} <= {path.name for path in images.iterdir()}
