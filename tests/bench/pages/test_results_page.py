"""What is drawn from the records: seeds that belong together, marks, tables."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from bench.common.markdown import START, table
from bench.defenses.guarded import Guarded
from bench.defenses.registry import DefenseSpec
from bench.evaluation import tables
from bench.evaluation.records import Record
from bench.pages.results import claims, defense_tables, groups, page, plots, sheet, text

pytestmark = pytest.mark.torch


def record_of(content):
    """A record of JSON that may lack parts."""
    parts = {part: {} for part in ("runs", "data", "triggers", "classifiers", "defenses", "cost")}
    return Record.from_json({**parts, **content})


def test_rows_with_other_triggers_or_targets_are_no_seeds_of_one():
    row = {"attack": "white", "trigger_name": "White", "defense": "none", "name": "none", "steps": 0, "queries": 1,
           "seed": 0, "data": "d", "classifiers": "c", "defenses": "n", "run": "r", "CA": [1, 2], "ASR": [1, 2],
           "PA": [1, 2], "pa_nontarget": [1, 2], "triggers": "t", "target": 1}  # fmt: skip
    others = [row, {**row, "target": 0}, {**row, "triggers": "u"}, {**row, "seed": 1}]
    content = {"rows": dict(enumerate(others)), "runs": {"r": {"date": "2026"}}}
    (group,) = groups.groups(record_of(content), ["white"], ["none"])
    assert [r.seed for r in group.rows] == [0, 1]


def counted(attack, line, ca, asr, pa, seen=500):
    """A row of 1,000 images."""
    rates = {"CA": [ca, 1000], "ASR": [asr, 900], "PA": [pa, 1000], "pa_nontarget": [pa, 1000]}
    clean = {"clean_model": {**rates, "PA": [seen, 1000]}} if line == "none" else {}
    return {"attack": attack, "trigger_name": attack, "defense": line, "name": line.upper(), "steps": 0,
            "queries": 1, "seed": 0, "run": "r", "data": "d", "triggers": "t", "target": 1, "classifiers": "c",
            "defenses": line, **rates, **clean}  # fmt: skip


def content_of(*rows):
    return {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}}


def dated(*rows):
    """A record of these rows, each taken a day after the last."""
    content = content_of(*({**row, "run": str(day)} for day, row in enumerate(rows)))
    return {**content, "runs": {str(day): {"date": f"2026-01-{day + 1:02}"} for day in range(len(rows))}}


def test_rows_beside_each_other_are_of_one_setup():
    """Whatever else differs, and whichever defenses each was measured with: the newest, and the same in every table."""
    for other in ("classifiers", "data", "triggers", "target"):
        old = [{**counted("badnets", line, 100, 0, 100), other: "old"} for line in ("none", "blur", "zip", "diffpure")]
        new = [counted("badnets", line, 900, 900, 100) for line in ("none", "zip")]
        blended = {**counted("blended", "none", 100, 0, 100), other: "old"}
        for content in (dated(*old, *new, blended), dated(old[0], new[0], *old[1:], new[1], blended)):
            found = groups.groups(record_of(content), ["badnets", "blended"], ["none", "blur", "zip"])
            assert [(g.first.attack, g.first.defense, getattr(g.first, other) == "old") for g in found] == [
                ("badnets", "none", False), ("badnets", "zip", False), ("blended", "none", True)
            ]  # fmt: skip
            assert not groups.groups(record_of(content), ["badnets"], ["diffpure"])
        (group,) = groups.groups(record_of(dated(*new, *old)), ["badnets"], ["blur"])
        assert getattr(group.first, other) == "old"


def fewer(row):
    """The same, of 100 images."""
    rates = {name: [row[name][0] // 10, row[name][1] // 10] for name in ("CA", "ASR", "PA", "pa_nontarget")}
    return {**row, "data": "fewer", **rates}


def test_rows_beside_each_other_are_of_the_same_images():
    """Of those that a table is about, then of as many defenses as there are, then of as many images."""
    many = [counted("badnets", line, 900, 900, 100) for line in ("none", "blur", "zip-paper")]
    few = [fewer(counted("badnets", line, 900, 900, 100)) for line in ("none", "blur", "diffpure", "zip-paper")]

    def sizes(*rows, table):
        return {g.first.defense: g.first.images for g in groups.of_table(record_of(dated(*rows)), table)}

    assert sizes(*many, *few, table="table1") == {"none": 1000, "blur": 1000, "zip-paper": 1000}
    assert sizes(*few, *many, table="table1") == {"none": 1000, "blur": 1000, "zip-paper": 1000}
    assert sizes(*many[:2], *few, table="table1") == {"none": 100, "blur": 100, "zip-paper": 100}
    # Table 6 is about DiffPure and its like, and has no more images for other triggers either
    blended = counted("blended", "none", 900, 900, 100)
    assert sizes(*many, *few, blended, table="table6") == {"none": 100, "diffpure": 100, "zip-paper": 100}
    other = {**counted("badnets", "diffpure", 800, 9, 700), "data": "other"}
    assert sizes(*many, other, table="table6") == {"diffpure": 1000}
    ddnm = counted("blended", "ddnm", 900, 900, 100)
    assert sizes(*many, few[2], ddnm, table="table6") == {"diffpure": 100, "ddnm": 1000}
    assert sizes(*many, table="table6") == {}


def test_zip_is_not_set_beside_rows_of_another_setup():
    guard = [counted("badnets", "none", 900, 900, 100), counted("badnets", "guard preset=fast", 860, 45, 810)]
    zip_ = counted("badnets", "zip-paper", 800, 10, 760)
    others = [counted("badnets", line, 700, 90, 600) for line in ("blur", "bdmae")]
    for other in ("classifiers", "data", "triggers", "target"):
        content = record_of(dated(*({**row, other: "old"} for row in others), *guard, zip_))
        assert claims.compare_to_baselines(content) == [["badnets", "76.0", "", "", "", "81.0", "", ""]]
        assert "BLUR" not in (drawn := claims.check_targets(content)) and "BDMAE" not in drawn and "81.0" in drawn


def test_zip_is_set_beside_rows_of_as_many_images_where_more_are_of_fewer():
    rows = [counted("badnets", line, 800, 10, pa) for line, pa in (("zip-paper", 760), ("blur", 700))]
    rows += [fewer(counted("badnets", line, 800, 10, 900)) for line in ("blur", "diffpure", "ddnm")]
    assert claims.compare_to_baselines(record_of(dated(*rows))) == [
        ["badnets", "76.0", "BLUR 70.0", "+6.0", "", "", "", ""]
    ]


def test_what_is_not_shown_is_counted():
    rows = [counted("badnets", line, 900, 900, 100) for line in ("none", "blur", "zip-paper", "zip steps=7")]
    assert text.left_out(record_of(dated(*rows))) == ""
    old = [{**row, "classifiers": "old"} for row in rows]
    assert "not shown: 3 rows." in text.left_out(record_of(dated(*old, *rows)))
    assert "not shown: 1 row." in text.left_out(record_of(dated({**rows[0], "defenses": "old"}, *rows)))
    assert "not shown: 2 rows." in text.left_out(record_of(dated(*map(fewer, rows[:2]), *rows)))


def test_marks_say_what_is_met_and_what_is_not():
    rows = [
        counted("badnets", "none", 900, 900, 100), counted("badnets", "guard preset=fast", 860, 45, 810),
        counted("badnets", "shrinkpad", 700, 90, 600), counted("badnets", "blur", 700, 90, 805),
        counted("badnets", "sampdetox", 700, 90, 830),
        counted("white", "none", 900, 900, 100), counted("white", "guard preset=fast", 859, 181, 808),
        counted("white", "blur", 700, 90, 808),
        counted("redundant", "none", 900, 900, 100), counted("redundant", "guard preset=fast", 900, 900, 100),
    ]  # fmt: skip
    drawn = claims.check_targets(record_of(content_of(*rows)))
    lines = [line for line in drawn.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["5.0 (at most 5.0)", "86.0 (at least 86.0)", "81.0 (at least 81.0)", "81.0 (above 80.5): BLUR",
         "SAMPDETOX 83.0", "50.0 |"],
        ["20.1 (at most 20.0: **no**)", "85.9 (at least 86.0: **no**)", "80.8 (at least 80.9: **no**)",
         "80.8 (above 80.8: **no**): BLUR", "", "50.0 |"],
    ]  # fmt: skip
    assert claims.check_targets(record_of(content_of())) == ""


def test_zip_is_set_beside_all_its_rivals_that_were_measured():
    rows = [
        counted("badnets", "zip-paper", 800, 10, 760), {**counted("badnets", "zip-paper", 800, 10, 780), "seed": 1},
        counted("badnets", "blur", 700, 90, 610), counted("badnets", "diffpure", 700, 90, 705),
        counted("badnets", "bdmae", 700, 90, 790), counted("badnets", "guard preset=fast", 800, 9, 801),
        counted("blended", "zip-paper", 800, 10, 600), counted("blended", "shrinkpad", 700, 90, 625),
        counted("physicalba", "zip-paper", 800, 10, 600), counted("white", "zip-paper", 800, 10, 600),
    ]  # fmt: skip
    # of other images, and no rival of theirs
    rows.append({**counted("badnets", "ddnm", 0, 0, 0), **{name: [90, 100] for name in ("CA", "ASR", "PA")}})
    assert claims.compare_to_baselines(record_of(content_of(*rows))) == [
        ["badnets", "77.0", "DIFFPURE 70.5, BLUR 61.0", "+6.5", "", "80.1", "79.0", ""],
        ["blended", "60.0", "SHRINKPAD 62.5", "-2.5", "", "", "", ""],
        ["physicalba", "60.0", "", "", "", "", "", ""],
    ]


def test_a_row_of_an_earlier_rule_of_the_guard_says_so():
    now = Guarded.VERSION
    rates = {name: [1, 2] for name in ("CA", "ASR", "PA", "pa_nontarget")}
    defenses = {"old": {"defence": "Guard", "version": now - 1}, "new": {"defence": "Guard", "version": now},
                "ZIP": {"defence": "ZIP", "version": 1}}  # fmt: skip
    rows = [
        {"attack": attack, "trigger_name": attack, "defense": line, "name": "Named", "steps": 4, "queries": 1,
         "seed": 0, "data": "d", "classifiers": "c", "defenses": of, "run": "r", "triggers": "t", "target": 1, **rates}
        for attack, line, of in (("badnets", "guard", "old"), ("white", "guard", "new"), ("sig", "zip", "ZIP"))
    ]  # fmt: skip
    content = {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}, "defenses": defenses}
    content = record_of(content)
    found = groups.groups(content, ["badnets", "white", "sig"], ["guard", "zip"])
    remarks = [defense_tables._remark(content, g) for g in found]
    assert remarks == [f" (by rule {now - 1}; now it is {now})", "", " (one setting)"]


def test_rejected_images_are_shown_and_defined(monkeypatch):
    rejecting = {**counted("white", "strip", 800, 90, 100), "rejected": [50, 1000], "rejected_triggered": [900, 1000]}
    specs = tuple(map(DefenseSpec, ("none", "strip")))
    monkeypatch.setitem(tables.TABLES, "table1", tables.Table(("white",), specs, "Table 1: these"))
    descriptions = {"defenses": {name: {"defence": name} for name in ("none", "strip")}}
    rows = [counted("white", "none", 900, 900, 100), rejecting]
    with_it = defense_tables.rows_of(record_of({**content_of(*rows), **descriptions}), "own", "table1")
    without = defense_tables.rows_of(record_of({**content_of(rows[0]), **descriptions}), "own", "table1")
    assert "| rejected: clean / with trigger |" in with_it and "5.0\u00a0/\u00a090.0" in with_it
    assert "neither correct nor the attacker's class" in with_it
    assert "ejected" not in without


def test_how_the_classifiers_were_trained_is_said():
    recipe = {"architecture": "small", "epochs": 40}
    clean = {"recipe": recipe, "poison": {"attack": None}}
    assert text.trained([clean]) == "Classifier: small, 40 epochs."
    poisoned = {"recipe": recipe, "poison": {"attack": {"name": "BadNets 2x2"}, "rate": 0.05}}
    assert text.trained([clean, poisoned]).endswith("40 epochs. Poisoned training images: 5%.")
    implanted = {**poisoned, "poison": {**poisoned["poison"], "implant": 10}}
    assert "5%. In the first 10 epochs half" in text.trained([poisoned, implanted])


def test_networks_are_compared_on_the_same_images():
    rows = [{**counted(attack, "none", ca, 900, 100), "classifiers": attack}
            for attack, ca in (("badnets", 900), ("blended", 880), ("white", 860), ("wanet", 870))]  # fmt: skip
    content = {**dated(*rows), "classifiers": {row["attack"]: {"augment": "standard"} for row in rows}}
    assert "no defense 86.0 to 90.0 (standard deviation 1.7, 4 networks)" in text.spread_of(record_of(content))
    content["rows"][0]["data"] = "other"
    assert "no defense 86.0 to 88.0 (standard deviation 1.0, 3 networks)" in text.spread_of(record_of(content))


def test_costs_are_together_that_were_measured_alike():
    def cost(run, side=32, images=64):
        return {"name": "Named", "steps": 4, "queries": 1, "images": images, "side": side, "run": run,
                "engine": {}, "ms": {"median": 2.0, "low": 1.0, "high": 3.0}}  # fmt: skip

    machines = {"a": {"cores": 2, "processor": "A"}, "b": {"cores": 8, "processor": "B"}}
    content = {"runs": {name: {"machine": machine} for name, machine in machines.items()}, "rows": {}}
    assert text.cost_of(record_of({**content, "cost": {}})) == ""
    one = text.cost_of(record_of({**content, "cost": {"blur": cost("a"), "zip": cost("a")}}))
    assert one.count("Milliseconds") == one.count("| row |") == 1 and "32 x 32, 64 at once" in one
    several = {"blur": cost("a"), "zip": cost("b"), "none": cost("a"), "ddnm": cost("a", 64), "bdmae": cost("a", 32, 8)}
    drawn = text.cost_of(record_of({**content, "cost": several}))
    told = [part.splitlines() for part in drawn.split("Milliseconds for each image of ")[1:]]
    assert [(lines[0].split(", median")[0], lines[0].split(" cores of ")[1].split(".")[0]) for lines in told] == [
        ("32 x 32, 64 at once", "A"), ("32 x 32, 64 at once", "B"), ("64 x 64, 64 at once", "A"),
        ("32 x 32, 8 at once", "A"),
    ]  # fmt: skip
    assert [[line.split()[1] for line in lines if "Named" in line] for lines in told] == [
        ["blur", "none"], ["zip"], ["ddnm"], ["bdmae"]
    ]  # fmt: skip
    assert drawn.count("### Cost") == drawn.count("The times of guards and of BDMAE") == 1


def described(rows, **network):
    """A record of these rows with what they refer to; `network` has the classifiers that are not `trained`."""
    trained = {"classifier": "small", "recipe": {"architecture": "small", "epochs": 10, "seed": 0},
               "poison": {"attack": {"name": "BadNets"}, "rate": 0.05}}  # fmt: skip
    return {
        **dated(*rows), "cost": {},
        "classifiers": {row["classifiers"]: network.get(row["classifiers"], trained) for row in rows},
        "defenses": {row["defenses"]: {"defence": "x"} for row in rows},
        "triggers": {"t": {"seed": 1}, "u": {"seed": 2}},
        "data": {"d": {"source": "mine.zip", "side": 64, "classes": 2},
                 "e": {"source": "mine.zip", "side": 32, "classes": 2}},
    }  # fmt: skip


def test_what_was_chosen_for_a_whole_run_parts_the_rows():
    row = counted("badnets", "none", 900, 900, 100)
    blended = {**counted("blended", "none", 900, 900, 100), "classifiers": "its own"}
    assert [told for told, _ in groups.parts(record_of(described([row, blended, fewer(row) | {"data": "d"}])))] == [""]
    assert groups.parts(record_of({"rows": {}})) == []
    recipe, poison = {"architecture": "small", "epochs": 10, "seed": 0}, {"rate": 0.05}
    small = {"classifier": "small", "recipe": recipe, "poison": poison}
    resnet = {"classifier": "resnet34", "recipe": {**recipe, "epochs": 30}}
    others = [
        ({"target": 0}, {}, ["target 1", "target 0"]), ({"triggers": "u"}, {}, ["attack seed 1", "attack seed 2"]),
        ({"data": "e"}, {}, ["side 64", "side 32"]),
        ({}, {"recipe": {**recipe, "epochs": 20}}, ["epochs 10", "epochs 20"]),
        ({}, {"recipe": {**recipe, "seed": 3}}, ["classifier seed 0", "classifier seed 3"]),
        ({}, {"poison": {"rate": 0.1}}, ["rate 0.05", "rate 0.1"]),
        ({}, {"poison": {"rate": 0.05, "implant": 9}}, ["warm-up epochs 0", "warm-up epochs 9"]),
        ({}, resnet, ["classifier small", "classifier resnet34"]),
    ]  # fmt: skip
    for change, network, told in others:
        other = {**row, **change, "classifiers": "o" if network else row["classifiers"]}
        found = groups.parts(record_of(described([row, other, blended], o={**small, **network})))
        assert [label for label, _ in found] == told
        assert [len(part.rows) for _, part in found] == [2, 1]


def test_a_page_has_a_section_for_each_classifier_that_was_brought(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {**counted("badnets", line, ca, asr, 0), "steps": 0, "classifiers": of}
        for of, line, ca, asr in (
            ("clean0", "none", 900, 0), ("clean0", "blur", 890, 0), ("clean0", "zip-paper", 880, 0),
            ("bad000", "none", 870, 900), ("bad111", "none", 860, 891),
        )
    ]  # fmt: skip
    content = described(rows, clean0={"classifier": "mine:f"}, bad000={"classifier": "mine:g"},
                        bad111={"classifier": "mine:g"})  # fmt: skip
    for name, run in content["runs"].items():
        run |= {"command": f"defense {name}", "commit": "abc1234", "machine": {"cores": 2, "processor": "p"}}
    took = {"median": 2.0, "low": 1.0, "high": 3.0}
    content["cost"]["none"] = {"name": "x", "steps": 0, "queries": 1, "images": 8, "side": 64, "run": "0", "engine": {},
                               "ms": took}  # fmt: skip
    (tmp_path / "defense-mine.json").write_text(json.dumps(content))
    sheet.place(tmp_path, "mine").touch()
    page.draw(tmp_path)
    _, *sections = (tmp_path / "results.md").read_text().split("\n## ")
    # of each its own rows, words and plot; what is of the images stands once
    names = ("mine", "mine-section2", "mine-section3")
    titles = ("mine:f, hash clean0", "mine:g, hash bad000", "mine:g, hash bad111")
    shown = ([("900", "0"), ("890", "0"), ("880", "0")], [("870", "900")], [("860", "891")])
    for drawn, name, title, cells in zip(sections, names, titles, shown, strict=True):
        assert drawn.startswith(f"mine: classifier {title}\n")
        assert f"user: {title.split(',')[0]}." in drawn and f"](defense-{name}.png)" in drawn
        table1 = drawn.split("### Table 1")[1].splitlines()
        found = [line.split(" | ") for line in table1 if line.startswith("| badnets")]
        assert [(f"{10 * float(c[2].split()[0]):.0f}", f"{9 * float(c[3].split()[0]):.0f}") for c in found] == cells
        assert ("### Cost" in drawn) == ("### Images" in drawn) == (name == "mine")
        assert ("### ZIP and the baselines" in drawn) == (name == "mine")  # the others have no row of ZIP
    assert {p.name for p in tmp_path.glob("*section*")} == {"defense-mine-section2.png", "defense-mine-section3.png"}


def test_a_curve_is_of_triggers_with_three_settings(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(plt, "close", lambda figure: drawn.append([a.get_title() for a in figure.axes]))
    rates = {name: [1, 2] for name in ("CA", "ASR", "PA", "pa_nontarget")}
    rows = [
        {"attack": attack, "trigger_name": attack.upper(), "defense": line, "name": line, "steps": n, "queries": 1,
         "seed": 0, "data": "d", "classifiers": "c", "defenses": line, "run": "r", "triggers": "t", "target": 1,
         **rates}
        for attack, line, n in (
            ("badnets", "zip start=400 steps=1", 1), ("badnets", "zip start=400 steps=2", 2), ("badnets", "zip", 20),
            ("blended", "zip start=400 steps=1", 1), ("blended", "zip", 20),
            ("physicalba", "zip", 20), ("physicalba", "zip-paper", 20),
        )
    ]  # fmt: skip
    content = {"rows": dict(enumerate(rows)), "runs": {"r": {"date": "2026"}}, "defenses": {}}
    path = plots.curve(record_of(content), "cifar10", "steps", "steps", tmp_path)
    assert path == tmp_path / "defense-cifar10-steps.png" and path.is_file() and drawn == [["BADNETS"]]
    content["rows"] = dict(enumerate(rows[3:]))
    assert plots.curve(record_of(content), "cifar10", "steps", "steps", tmp_path) is None


def test_a_bar_in_a_cell_is_no_border():
    assert table(["a", "b"], [["x|y", "z"]]).splitlines()[2] == "| x\\|y | z |"


def test_columns_in_which_there_is_nothing_are_left_out():
    assert defense_tables.without_blanks(["a", "b", "c"], [["1", "", ""], ["2", "", "3"]]).splitlines() == [
        "| a | c |", "| --- | --- |", "| 1 |  |", "| 2 | 3 |"
    ]  # fmt: skip


def test_a_page_is_drawn_beside_its_records(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.argv", ["page", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        page.main()
    assert stopped.value.code == 1 and f"{tmp_path}: got no defense-DATASET.json" in capsys.readouterr().err
    rows = [
        {**counted("badnets", line, 800, 9, 700), "steps": 0, "name": line, "target": 0}
        for line in ("none", "blur", "zip-paper")
    ]
    content = {
        **content_of(*rows), "defenses": {line: {"defence": line} for line in ("none", "blur", "zip-paper")},
        "data": {"d": {"source": "mine.zip", "side": 64, "classes": 2}}, "cost": {},
        "classifiers": {"c": {"classifier": "mine.onnx"}}, "triggers": {"t": {"seed": 1}},
    }  # fmt: skip
    content["runs"]["r"] |= {"command": "python -m bench.defense table1", "commit": "abc1234"}
    for name in ("mine", "gtsrb"):
        (tmp_path / f"defense-{name}.json").write_text(json.dumps(content))
    (tmp_path / "results.md").write_text(f"What I think of it.\n{START}\nold")
    page.main()
    drawn = (tmp_path / "results.md").read_text()
    assert drawn.startswith("What I think of it.\n<!-- measured -->\n## GTSRB\n") and "old" not in drawn
    headings = [line for line in drawn.splitlines() if line.startswith("## ")]
    assert headings == ["## GTSRB", "## mine"] and drawn.count("### ZIP and the baselines") == 2
    assert "Classifiers of the user: mine.onnx." in drawn
    # the paper has no such data set
    assert ("the paper's" in drawn.split("## mine")[0]) and "the paper's CA" not in drawn.split("## mine")[1]
    assert {p.name for p in tmp_path.glob("*.png")} == {"defense-gtsrb.png", "defense-mine.png"}
    (tmp_path / "results.md").unlink()
    page.main()
    assert (tmp_path / "results.md").read_text().startswith("# Results\n\nIn percent")
