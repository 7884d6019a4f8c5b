"""What the pages say was measured is what the records say: a number that was typed, or a page that was not drawn again
(``python -m bench.pages.readme``), shows here."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from bench.common import markdown
from bench.common.markdown import END, ROOT, START
from bench.common.record import RESULTS, read
from bench.pages import readme
from bench.pages.results import page

pytestmark = pytest.mark.torch


def measured(*path):
    """What stands between the two marks of a page, which every page has once."""
    _, rest = ROOT.joinpath(*path).read_text().split(START)
    block, _ = rest.split(END)
    return block.strip("\n")


@pytest.mark.parametrize("name", ["speed", "restoration", "cost", "crosstalk", "seams", "kernels"])
def test_the_readme_has_each_part_as_it_is_drawn_from_its_record(name):
    part = getattr(readme, name)()
    assert len(part) > 100
    assert f"\n\n{part}\n" in f"{measured('README.md')}\n"


@pytest.mark.parametrize(
    ("lacking", "kept"),
    [({}, (True, True)), ({"guard": None, "gates": {}}, (False, True)), ({"gates": {}}, (False, True)),
     ({"guard": None, "gates": {}, "seconds_per_image": {"classify": [1.0]}}, (False, False))],
)  # fmt: skip
def test_of_speed_only_what_was_measured_is_told(monkeypatch, lacking, kept):
    content = {**read("speed"), **lacking}
    monkeypatch.setattr(readme, "read", lambda name: content)
    text = readme.speed()
    assert ("These guards" in text, "rounds: " in text) == kept
    assert text.startswith("Goals for speed") and content["command"] in text
    assert all(f"| {c['claim']} | {c['wanted']} |" in text for c in content["claims"])


def test_the_card_of_the_bundled_model_has_the_losses_of_its_log():
    log = [json.loads(line) for line in (RESULTS / "zip-tiny-training.jsonl").read_text().splitlines()]
    assert measured("zipsdk", "models", "zip-tiny.md") == readme.losses(log)


def test_the_readme_and_the_pages_of_the_defense_are_drawn_from_their_records():
    block = measured("README.md")
    parts = ("defense", "speed", "restoration", "cost", "crosstalk", "seams", "kernels")
    assert block == "\n\n".join(getattr(readme, name)() for name in parts)
    assert measured("docs", "defaults.md") == readme.search()


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    markdown.replace(page, "new\n\nlines")
    assert page.read_text() == f"before\n{START}\nnew\n\nlines\n{END}\nafter\n"
    markdown.replace(page, "x")
    assert page.read_text() == f"before\n{START}\nx\n{END}\nafter\n"


def test_losses_are_those_of_the_last_line():
    steps = list(range(0, 1000, 50))
    log = [{"samples": n, "steps": steps, "held_out:a": [t * n / 1e6 for t in steps]} for n in (1000, 2000)]
    lines = readme.losses(log).splitlines()
    assert lines[0] == "| after 2,000 samples, t = | 0 | 50 | 100 | 150 | 200 | 300 | 400 | 600 | 800 | 950 |"
    assert lines[2] == "| a | 0 | 0.1 | 0.2 | 0.3 | 0.4 | 0.6 | 0.8 | 1.2 | 1.6 | 1.9 |" and len(lines) == 3


def test_the_page_of_results_is_drawn_from_its_records(monkeypatch, tmp_path):
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: path.touch())
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results").symlink_to(RESULTS)
    drawn = page.measured(tmp_path / "bench" / "results", docs / "results.md")
    stored = (ROOT / "docs" / "results.md").read_text()
    assert stored.split(START)[1].strip("\n") == drawn
    assert {path.name for path in docs.iterdir()} <= {path.name for path in (ROOT / "docs").iterdir()}
