"""What a reader of the numbers must know, said plainly."""

from collections import defaultdict
from collections.abc import Mapping

from giung2_ext.reports import standing
from giung2_ext.reports.gather import Gathered


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


UNLIKE = {
    "networks": lambda recipe: recipe["model"]["name"],
    "sets of images": lambda recipe: recipe["data"]["name"],
    "numbers of steps": lambda recipe: f"{recipe['optim']['ni']:,}",
    "rules to select by": lambda recipe: recipe["evaluation"].get("select_by", "accuracy"),
}


def likeness(gathered: Gathered) -> list[str]:
    """What sets several runs apart that are shown side by side."""
    lines = []
    for what, read in UNLIKE.items():
        found: dict[str, str] = {}
        for run in gathered.shown:
            recipe = run.stored.get("recipe") if isinstance(run.stored, Mapping) else None
            value = standing.guarded(lambda recipe=recipe, read=read: read(recipe), None)
            if value is not None:
                found.setdefault(run.place.run, value)
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            lines.append(f"The runs are of different {what}: {told}.")
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
    return [f"{len(found)} {state}, not finished: {', '.join(found)}." for state, found in states.items()]
