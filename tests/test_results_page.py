"""What is drawn from the records: seeds that belong together, marks, tables."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from bench import results_groups, results_marks, results_page, results_plot
from bench.baselines.guarded import Guarded


def test_rows_with_other_triggers_or_targets_are_no_seeds_of_one():
    row = {"attack": "white", "trigger name": "White", "defence": "none", "name": "none", "evaluations": 0, "seed": 0,
           "data": "d", "classifiers": "c", "defences": "n", "run": "r", "CA": [1, 2], "ASR": [1, 2], "PA": [1, 2],
           "PA others": [1, 2], "triggers": "t", "target": 1}  # fmt: skip
    others = [row, {**row, "target": 0}, {**row, "triggers": "u"}, {**row, "seed": 1}]
    content = {"rows": dict(enumerate(others)), "runs": {"r": {"date": "2026"}}}
    (group,) = results_groups.groups(content, ["white"], ["none"])
    assert [r["seed"] for r in group.rows] == [0, 1]


def counted(attack, line, ca, asr, pa, seen=500):
    """A row of 1,000 pictures."""
    rates = {"CA": [ca, 1000], "ASR": [asr, 900], "PA": [pa, 1000], "PA others": [pa, 1000]}
    clean = {"clean classifier": {**rates, "PA": [seen, 1000]}} if line == "none" else {}
    return {"attack": attack, "trigger name": attack, "defence": line, "name": line.upper(), "seed": 0, "run": "r",
            "data": "d", "triggers": "t", "target": 1, "classifiers": "c", "defences": line,
            **rates, **clean}  # fmt: skip


def content_of(*rows):
    return {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}}


def test_marks_say_what_is_met_and_what_is_not():
    rows = [
        counted("badnets", "none", 900, 900, 100), counted("badnets", "guard profile=fast", 860, 45, 810),
        counted("badnets", "shrinkpad", 700, 90, 600), counted("badnets", "blur", 700, 90, 805),
        counted("badnets", "sampdetox", 700, 90, 830),
        counted("white", "none", 900, 900, 100), counted("white", "guard profile=fast", 859, 181, 808),
        counted("white", "blur", 700, 90, 808),
        counted("redundant", "none", 900, 900, 100), counted("redundant", "guard profile=fast", 900, 900, 100),
    ]  # fmt: skip
    page = results_marks.marks_of(content_of(*rows))
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["5.0 (at most 5.0)", "86.0 (at least 86.0)", "81.0 (at least 81.0)", "81.0 (above 80.5): BLUR",
         "SAMPDETOX 83.0", "50.0 |"],
        ["20.1 (at most 20.0: **no**)", "85.9 (at least 86.0: **no**)", "80.8 (at least 80.9: **no**)",
         "80.8 (above 80.8: **no**): BLUR", "", "50.0 |"],
    ]  # fmt: skip
    assert results_marks.marks_of(content_of()) == ""


def test_zip_is_set_beside_all_its_rivals_that_were_measured():
    rows = [
        counted("badnets", "zip-paper", 800, 10, 760), {**counted("badnets", "zip-paper", 800, 10, 780), "seed": 1},
        counted("badnets", "blur", 700, 90, 610), counted("badnets", "diffpure", 700, 90, 705),
        counted("badnets", "bdmae", 700, 90, 790), counted("badnets", "guard profile=fast", 800, 9, 801),
        counted("blended", "zip-paper", 800, 10, 600), counted("blended", "shrinkpad", 700, 90, 625),
        counted("physicalba", "zip-paper", 800, 10, 600), counted("white", "zip-paper", 800, 10, 600),
    ]  # fmt: skip
    # of other pictures, and no rival of theirs
    rows.append({**counted("badnets", "ddnm", 0, 0, 0), **{name: [90, 100] for name in ("CA", "ASR", "PA")}})
    assert results_marks.ahead_of(content_of(*rows)) == [
        ["badnets", "77.0", "DIFFPURE 70.5, BLUR 61.0", "+6.5", "", "80.1", "79.0", ""],
        ["blended", "60.0", "SHRINKPAD 62.5", "-2.5", "", "", "", ""],
        ["physicalba", "60.0", "", "", "", "", "", ""],
    ]


def test_a_row_of_an_earlier_rule_of_the_guard_says_so():
    now = Guarded.VERSION
    rates = {name: [1, 2] for name in ("CA", "ASR", "PA", "PA others")}
    defences = {"old": {"defence": "Guard", "version": now - 1}, "new": {"defence": "Guard", "version": now},
                "ZIP": {"defence": "ZIP", "version": 1}}  # fmt: skip
    rows = [
        {"attack": attack, "trigger name": attack, "defence": line, "name": "Named", "evaluations": 4, "seed": 0,
         "data": "d", "classifiers": "c", "defences": of, "run": "r", "triggers": "t", "target": 1, **rates}
        for attack, line, of in (("badnets", "guard", "old"), ("white", "guard", "new"), ("sig", "zip", "ZIP"))
    ]  # fmt: skip
    content = {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}, "defences": defences}
    found = results_groups.groups(content, ["badnets", "white", "sig"], ["guard", "zip"])
    remarks = [results_page._remark(content, g) for g in found]
    assert remarks == [f" (by rule {now - 1}; now it is {now})", "", " (one setting)"]


def test_how_the_classifiers_were_trained_is_said():
    recipe = {"architecture": "small", "epochs": 40}
    clean = {"recipe": recipe, "poison": {"attack": None}}
    assert results_page._trained([clean]) == "Classifier: small, 40 epochs."
    poisoned = {"recipe": recipe, "poison": {"attack": {"name": "BadNets 2x2"}, "rate": 0.05}}
    assert results_page._trained([clean, poisoned]).endswith("40 epochs. Poisoned training pictures: 5%.")
    implanted = {**poisoned, "poison": {**poisoned["poison"], "implant": 10}}
    assert "5%. In the first 10 epochs half" in results_page._trained([poisoned, implanted])


def test_a_curve_is_of_triggers_with_three_settings(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(plt, "close", lambda figure: drawn.append([a.get_title() for a in figure.axes]))
    rates = {name: [1, 2] for name in ("CA", "ASR", "PA", "PA others")}
    rows = [
        {"attack": attack, "trigger name": attack.upper(), "defence": line, "evaluations": n, "seed": 0, "data": "d",
         "classifiers": "c", "defences": line, "run": "r", "triggers": "t", "target": 1, **rates}
        for attack, line, n in (
            ("badnets", "zip start=400 steps=1", 1), ("badnets", "zip start=400 steps=2", 2), ("badnets", "zip", 20),
            ("blended", "zip start=400 steps=1", 1), ("blended", "zip", 20),
            ("physicalba", "zip", 20), ("physicalba", "zip-paper", 20),
        )
    ]  # fmt: skip
    content = {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}, "defences": {}}
    path = results_plot.curve(content, "cifar10", "evaluations", "evaluations", tmp_path)
    assert path == tmp_path / "defense-cifar10-evaluations.png" and path.is_file() and drawn == [["BADNETS"]]
    content["rows"] = dict(enumerate(rows[3:]))
    assert results_plot.curve(content, "cifar10", "evaluations", "evaluations", tmp_path) is None


def test_a_bar_in_a_cell_is_no_border():
    from bench.report import table

    assert table(["a", "b"], [["x|y", "z"]]).splitlines()[2] == "| x\\|y | z |"


def test_columns_in_which_there_is_nothing_are_left_out():
    assert results_page._without_blanks(["a", "b", "c"], [["1", "", ""], ["2", "", "3"]]).splitlines() == [
        "| a | c |", "| --- | --- |", "| 1 |  |", "| 2 | 3 |"
    ]  # fmt: skip


def test_a_page_is_drawn_beside_its_records(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.argv", ["results_page", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        results_page.main()
    assert stopped.value.code == 1 and f"{tmp_path}: got no defense-DATASET.json" in capsys.readouterr().err
    rows = [
        {**counted("badnets", line, 800, 9, 700), "evaluations": 0, "name": line, "target": 0}
        for line in ("none", "blur", "zip-paper")
    ]
    content = {
        **content_of(*rows), "defences": {line: {"defence": line} for line in ("none", "blur", "zip-paper")},
        "data": {"d": {"source": "mine.zip", "side": 64, "classes": 2}}, "cost": {},
        "classifiers": {"c": {"classifier": "mine.onnx"}},
    }  # fmt: skip
    content["runs"]["r"] |= {"command": "python -m bench.defense table1", "commit": "abc1234"}
    for name in ("mine", "gtsrb"):
        (tmp_path / f"defense-{name}.json").write_text(json.dumps(content))
    (tmp_path / "results.md").write_text(f"What I think of it.\n{results_page.START}\nold")
    results_page.main()
    page = (tmp_path / "results.md").read_text()
    assert page.startswith("What I think of it.\n<!-- measured -->\n## ZIP and its rivals") and "old" not in page
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## ZIP and its rivals", "## GTSRB", "## mine"]
    assert "Classifiers that were brought: mine.onnx." in page
    # the paper has no such data set
    assert ("the paper's" in page.split("## mine")[0]) and "the paper's CA" not in page.split("## mine")[1]
    assert {p.name for p in tmp_path.glob("*.png")} == {"defense-gtsrb.png", "defense-mine.png"}
    (tmp_path / "results.md").unlink()
    results_page.main()
    assert (tmp_path / "results.md").read_text().startswith("# Results\n\nIn percent")
