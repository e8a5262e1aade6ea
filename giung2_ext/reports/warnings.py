"""What a reader of the numbers must know, said plainly."""

import os
from collections import defaultdict
from collections.abc import Mapping

from giung2_ext.reports import measure, standing
from giung2_ext.reports.gather import Gathered

MOST = 6  # fields of a recipe that a line names


def about(gathered: Gathered) -> str:
    """What the columns of the summary are."""
    where = sorted({run.result["selected_on"] for run in gathered.shown if run.result})
    if not where:
        return "No run is finished: there are no scores yet."
    which = " and ".join(where)
    return (
        f"Test and held-out accuracy are top-1 of the ticket that was selected on {which}, with the "
        "95% interval of the test examples (Wilson). Density: kept over prunable weights; of all: over all "
        "parameters. FLOPs: of one image, kept weights only."
    )


def warnings(gathered: Gathered) -> list[str]:
    return [
        *likeness(gathered),
        *selection(gathered),
        *seeds(gathered),
        *pipelines(gathered),
        *images(gathered),
        *unfinished(gathered),
    ]


UNLIKE = {  # by the field of the recipe
    "model.name": ("networks", lambda recipe: recipe["model"]["name"]),
    "data.name": ("sets of images", lambda recipe: recipe["data"]["name"]),
    "optim.ni": ("numbers of steps", lambda recipe: f"{recipe['optim']['ni']:,}"),
    "evaluation.select_by": (
        "rules to select by",
        lambda recipe: recipe["evaluation"].get("select_by", "accuracy"),
    ),
}
EXPECTED = ("seed", "start")  # to be other ones


def likeness(gathered: Gathered) -> list[str]:
    """What sets several runs apart that are shown side by side."""
    lines = []
    for what, read in UNLIKE.values():
        found: dict[str, str] = {}
        for run in gathered.shown:
            recipe = run.stored.get("recipe") if isinstance(run.stored, Mapping) else None
            value = standing.guarded(lambda recipe=recipe, read=read: read(recipe), None)
            if value is not None:
                found.setdefault(run.place.run, value)
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            lines.append(f"The runs are of different {what}: {told}.")
    fields = [row["field"] for row in measure.recipe_rows(gathered) if measure.differs(row)]
    others = [f for f in fields if f not in UNLIKE and f.partition(".")[0] not in EXPECTED]
    if others:
        more = f" and {len(others) - MOST} more" if len(others) > MOST else ""
        lines.append(f"The recipes differ in {', '.join(others[:MOST])}{more}: see Recipe.")
    return lines


def selection(gathered: Gathered) -> list[str]:
    found = [run.series for run in gathered.shown if run.result.get("selected_on") == "test"]
    where = {run.result["selected_on"] for run in gathered.shown if run.result}
    lines = []
    if found:
        lines.append(
            f"{', '.join(dict.fromkeys(found))}: the ticket was selected on the test set, so its accuracy "
            "is optimistic."
        )
    if len(where) > 1:
        lines.append(f"Runs were selected on different splits: {', '.join(sorted(where))}.")
    return lines


def seeds(gathered: Gathered) -> list[str]:
    """Runs without a seed, and cycles that lack some of the trials."""
    lines = [
        f"{run.place.folder}: no seed is recorded."
        for run in gathered.shown
        if run.counts.get("seed", 0) is None
    ]
    trials: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for run in gathered.shown:
        if run.result:
            trials[run.series][run.cycle].add(run.place.trial)
    for series, cycles in trials.items():
        everyone = set.union(*cycles.values())
        lacking = {c: len(found) for c, found in cycles.items() if found != everyone}
        if lacking:
            told = ", ".join(f"{count} in cycle {c:03d}" for c, count in sorted(lacking.items()))
            lines.append(f"{series}: some seeds are missing: of {len(everyone)} trials {told}.")
        if len(everyone) == 1:
            lines.append(f"{series}: one seed, so nothing is known of its spread.")
    return lines


def pipelines(gathered: Gathered) -> list[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for run in gathered.shown:
        for scores in run.judged:
            found[scores["dataset"]].add(scores["pipeline"])
    told = "{} was judged by different evaluation pipelines ({}): do not compare those rows."
    return [told.format(name, ", ".join(sorted(used))) for name, used in several(found)]


def several(found: Mapping[str, set[str]]) -> list[tuple[str, set[str]]]:
    """Those with more than one value."""
    return [(name, values) for name, values in found.items() if len(values) > 1]


def images(gathered: Gathered) -> list[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for run in gathered.shown:
        for scores in run.judged:
            found[scores["dataset"]].add(str(scores.get("images")))
        if run.result.get("images", {}).get("test"):
            found["the test split"].add(str(run.result["images"]["test"]))
    told = "Not all rows of {} are of the same images: do not compare them."
    return [told.format(name) for name, _ in several(found)]


def unfinished(gathered: Gathered) -> list[str]:
    states: dict[str, list[str]] = defaultdict(list)
    for run in gathered.shown:
        if run.state not in ("finished", "damaged"):
            states[run.state].append(f"{run.place.folder}{f' ({run.why})' if run.why else ''}")
    lines = [f"{len(found)} {state}, not finished: {', '.join(found)}." for state, found in states.items()]
    known = {os.fspath(run.place.folder) for run in gathered.runs}
    roots = {os.fspath(run.place.root) for run in gathered.runs}
    for one in gathered.standings:
        if one.kind == "chain" and one.folder in roots and one.state not in ("finished", "damaged"):
            far = "at its rewind point" if one.cycle is None else f"at cycle {one.cycle:03d}"
            why = f" ({one.why})" if one.why else ""
            lines.append(
                f"The chain {one.folder} is {one.state} {far} of {one.cycles:03d}, {one.finished} runs "
                f"finished{why}."
            )
    others = [one for one in gathered.standings if one.kind == "run" and one.folder not in known]
    absent = [one for one in others if one.state in ("waiting", "running", "stopped", "failed")]
    if len(others) > len(absent):
        told = ", ".join(one.folder for one in others if one not in absent)
        lines.append(
            f"{len(others) - len(absent)} below that are not shown: {told}; name them to see them."
        )
    if absent:
        told = ", ".join(f"{one.folder} ({one.state})" for one in absent)
        lines.append(f"{len(absent)} without anything to show yet: {told}.")
    return lines
