"""Draw the tables of docs/research/notebook.md from the records of `bench.evaluation.search`."""

from __future__ import annotations

from bench.common.markdown import fill, table
from bench.common.record import RESULTS, read
from bench.evaluation.records import Record
from bench.evaluation.tables import TABLES
from bench.pages.results.groups import GUARD, groups
from bench.pages.results.page import TITLES


def search() -> str:
    """Return all tables of the notebook."""
    present = (dataset for dataset in TITLES if (RESULTS / f"search-{dataset}.json").is_file())
    return "\n\n".join([*map(_search, present), rejected_rule_table()])


def _search(dataset: str) -> str:
    record = read(f"search-{dataset}")
    triggers = list(record["triggers"])

    def cells(rates: dict[str, list[float]]) -> list[str]:
        return [" / ".join(f"{v:.0f}" for v in rates[name][1:]) for name in triggers]

    def ca(rates: dict[str, list[float]]) -> str:
        return f"{rates[triggers[0]][0]:.1f}"

    whole = record["views"]["whole"]
    defenses = [["No defense", "0", ca(whole), *cells(whole), ""]]
    defenses += [
        [name, f"{d['steps']:g}", ca(d["rates"]), *cells(d["rates"]),
         f"{d['flagged']['clean']:.0f}" if d["flagged"] else ""]
        for name, d in record["defenses"].items()
    ]  # fmt: skip
    scores = [[name, *(f"{v[t]:.0f}" for t in triggers)] for name, v in record["rules"].items()]
    learning = [
        [f"{share}%", name, f"{line['clean']:.0f}" if "clean" in line else "", *(f"{line[t]:.0f}" for t in triggers)]
        for share in record["learning"]["bounded"]
        for name in record["learning"]
        for line in [record["learning"][name][share]]
    ]
    views = [[name, ca(v), *cells(v)] for name, v in record["views"].items()]
    return fill(
        "search",
        title=TITLES[dataset],
        images=record["images"],
        calibration=record["calibration"],
        command=record["command"],
        commit=record["commit"],
        triggers="\n".join(f"- {name}: {about}" for name, about in record["triggers"].items()),
        defenses=table(["defense", "steps", "CA", *triggers, "flagged"], defenses),
        scores=table(["score", *triggers], scores),
        learning=table(["share", "reference", "clean", *triggers], learning),
        one_class=one_class(record["one_class"]),
        views=table(["view", "CA", *triggers], views),
    )


def rejected_rule_table() -> str:
    """Compare rows of the guard with those of the rule that was tried last and rejected."""
    lines, commits = [], set()
    for dataset, title in TITLES.items():
        name = f"defense-{dataset}"
        if not (RESULTS / "rule-6" / f"{name}.json").is_file():
            continue
        rejected = Record.read(name, RESULTS / "rule-6")
        commits |= {run["commit"] for run in rejected.runs.values()}
        now, then = (
            {g.trigger: g.brief(1) for g in groups(record, TABLES["agnostic"].attacks, [GUARD])}
            for record in (Record.read(name), rejected)
        )
        lines += [[title, trigger[1], now[trigger], cells] for trigger, cells in then.items()]
    return fill("rejected_rule", commits=", ".join(sorted(commits)),
                table=table(["images", "trigger", "current rule", "rule 6"], lines))  # fmt: skip


def one_class(found: dict[str, dict[str, float]]) -> str:
    """Describe what a guard flags after it has learned from images of one class; see `bench.evaluation.search`."""
    shares = [f"{name} {f['flagged']:.0f}% are flagged and {f['certain']:.0f}% certain" for name, f in found.items()]
    return f"After learning from images of one class, of clean images of all classes, reference {'; '.join(shares)}."
