"""A report's page shows what runs have written, needs no network, and survives damage."""

import csv
import html
import json
import re

import numpy as np
import pytest
from etils import epath
from test_figures import make_chain, make_masks

from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.reports import drawing, gather, measure, page, published, report, summary, warnings
from giung2_ext.storage import locks, paths, predictions, records


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "chain"


def data_of(written):
    text = (written.folder / page.PAGE).read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def rows_of(data, name):
    chart = data["charts"][name]
    return [dict(zip(chart["columns"], values, strict=True)) for values in chart["values"]]


def judge(run, digest, dataset, accuracy, pipeline="tf", examples=60, lacking=None, kind="4"):
    """Predictions of a ticket as evaluate.py keeps them, wrong on the last examples."""
    labels = np.arange(examples) % 4
    top = np.stack([labels, (labels + 1) % 4], axis=1)
    wrong = round((1 - accuracy) * examples)
    top[examples - wrong :] = top[examples - wrong :, ::-1]
    arrays = {"ids": np.arange(examples), "labels": labels, "top": top}
    arrays["confidence"] = np.linspace(0.4, 1, examples)
    arrays.pop(lacking, None)
    scores = {"top1": [accuracy, accuracy - 0.1, accuracy + 0.05], "ece": [0.1, 0.05, 0.2]}
    about = {"dataset": dataset, "pipeline": pipeline, "images": "60:a", "ticket": digest, "seen": examples}
    predictions.write(predictions.folder_in(run, digest), about | {"scores": {kind: scores}}, arrays)


def test_a_page_is_one_file_that_names_nothing_outside(folder):
    make_chain(folder, 2)
    written = page.write_page([folder], folder / "report")
    text = (written.folder / page.PAGE).read_text()
    without_bundle = text.replace(page.bundle(), "")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", without_bundle)
    assert "<link rel=stylesheet" not in without_bundle
    assert "@import" not in without_bundle
    assert len(text) < 5e6
    for chart in written.charts:
        assert (written.folder / f"figures/{chart.name}.png").read_bytes().startswith(b"\x89PNG")
        assert (written.folder / f"figures/{chart.name}.pdf").read_bytes().startswith(b"%PDF")
        assert {p.suffix for p in (written.folder / "tables").glob(f"{chart.name}.*")} == {
            ".md",
            ".csv",
            ".tex",
        }


def test_numbers_of_the_page_are_those_of_the_results(folder):
    points = make_chain(folder, 2)
    written = page.write_page([folder], folder / "report")
    found = {
        (r["series"], r["cycle"]): r
        for r in rows_of(data_of(written), "accuracy_by_density")
        if r["panel"] == "trained"
    }
    for arm, cycle in {(p.arm, p.cycle) for p in points}:
        own = [p.accuracy("best") for p in points if (p.arm, p.cycle) == (arm, cycle)]
        row = found[arm or "tickets", cycle]
        assert row["value"] == pytest.approx(np.mean(own), rel=1e-4)
        assert row["high"] - row["value"] == pytest.approx(np.std(own, ddof=1), abs=1e-2)
    with (written.folder / "tables/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points)
    assert [int(r["kept"]) for r in rows] == [p.result["kept"] for p in points]
    assert [float(r["test"]) for r in rows] == pytest.approx([p.accuracy("best") for p in points])


def test_overlaps_of_packed_masks_are_those_of_the_masks(folder):
    make_chain(folder, 2)
    rows = rows_of(data_of(page.write_page([folder], folder / "report")), "mask_overlap")
    for row in [r for r in rows if r["series"] == "tickets"]:
        expected = masking.overlap(make_masks(0, row["a"]), make_masks(0, row["b"]))
        assert row["overlap"] == pytest.approx(expected, rel=1e-4)


def test_sizes_of_weights_are_counted_by_octave():
    weights = np.array([0.5, -0.75, 1.0, 3.0, 0.0], np.float32)
    found = measure.histogram(weights, np.array([True, True, True, True, False]))
    assert {o: n for o, n in zip(measure.OCTAVES, found, strict=True) if n} == {-1: 2, 0: 1, 1: 1}


def test_bars_of_sizes_stand_on_their_octaves_and_are_closed(folder):
    """A weight of 2 is in the octave from 1 to 2 of log2; all of the fixture's are."""
    make_chain(folder, 1)
    written = page.write_page([folder], folder / "report")
    chart = next(c for c in written.charts if c.name == "weight_sizes")
    assert chart.spec["spec"]["mark"]["interpolate"] == "step-after"
    for when, least in (("before", 1.0), ("after", 0.3)):
        rows = [r for r in chart.rows if r["when"] == when and r["cycle"] == 1]
        assert [r["log2"] for r in rows] == [0, 1, 2]
        assert [r["share"] > 0 for r in rows] == [False, True, False]
        assert least <= rows[1]["share"] <= 1


def test_judged_sets_stand_before_the_published_curve(folder):
    for point in make_chain(folder, 1):
        if not point.arm:
            for name in ("imagenet2012", "imagenet_a"):
                judge(point.folder, "b", name, 0.8 - 0.1 * point.cycle)
            judge(point.folder, "b", "imagenet_real", 0.8 - 0.1 * point.cycle, kind="real")
    written = page.write_page([folder], folder / "report")
    data = data_of(written)
    assert {"sets_by_density", "robustness", "reliability", "calibration"} <= data["charts"].keys()
    rows = [
        r for r in rows_of(data, "sets_by_density") if r["series"] == published.NAME and r["panel"] == "IN"
    ]
    assert [(r["density"], r["value"]) for r in rows][:2] == [(1.0, 76.06), (0.41, 76.58)]
    text = (written.folder / page.PAGE).read_text()
    assert "80.00 [70.00, 85.00]" in text
    assert not re.search(r"imagenet_real \d+: \d became", text)  # whose labels the arrays do not have
    assert re.search(r"imagenet_a \d+: [0-3] became [0-3]<br>", text)  # flips
    named = page.write_page([folder], folder / "report", names=lambda dataset: ["ant", "bee", "cat", "dog"])
    text = (named.folder / page.PAGE).read_text()
    assert re.search(r"imagenet_a \d+: (ant|bee|cat|dog) became (ant|bee|cat|dog)<br>", text)


def test_different_pipelines_a_test_set_that_selects_and_lacking_trials_are_warned_of(folder):
    points = make_chain(folder, 3)
    for point, pipeline in zip(points[:2], ("tf", "timm"), strict=True):
        judge(point.folder, "b", "imagenet_a", 0.5, pipeline)
    records.write_result(points[2].folder, points[2].result | {"selected_on": "test"})
    (points[-2].folder / records.RESULT).unlink()
    told = "\n".join(page.write_page([folder], folder / "report").warnings)
    assert "imagenet_a was judged by different evaluation pipelines (tf, timm)" in told
    assert "selected on the test set, so its accuracy is optimistic" in told
    assert "some seeds are missing: of 3 trials" in told


def rewrite(run, file, change):
    content = json.loads((run / file).read_text())
    change(content)
    (run / file).write_text(json.dumps(content))


def result(**fields):
    return lambda run: rewrite(run, records.RESULT, lambda found: found.update(fields))


def unseen(found):
    found["scores"]["best"]["test"]["seen"] = 0


DAMAGE = {
    "nothing seen": lambda run: rewrite(run, records.RESULT, unseen),
    "no layers": result(layers={}),
    "a layer of one number": result(layers={"fc/kernel": 3}),
    "FLOPs of something else": result(flops={"x": 1}),
    "images that are a list": result(images=[1]),
    "a config that is a list": lambda run: (run / records.CONFIG).write_text("[1]"),
    "a session that is a number": lambda run: rewrite(
        run, records.CONFIG, lambda found: found.update(sessions=[1])
    ),
    "no result": lambda run: (run / records.RESULT).unlink(),
    "half a result": lambda run: (run / records.RESULT).write_text('{"scores": {'),
    "a result without scores": lambda run: (run / records.RESULT).write_text("{}"),
    "a result that is a list": lambda run: (run / records.RESULT).write_text("[1]"),
    "half a config": lambda run: (run / records.CONFIG).write_text("{"),
    "metrics of numbers": lambda run: (run / records.METRICS).write_text('1\n{"split": "test"}\n'),
    "half a ticket": lambda run: (run / paths.best("accuracy") / "arrays.npz").write_bytes(b"PK half"),
    "a ticket that says nothing": lambda run: (run / paths.best("accuracy") / "ticket.json").write_text(
        "{"
    ),
    "a name of nothing": lambda run: (paths.resolve(run / paths.best("accuracy"))).rmtree(),
    "predictions without confidence": lambda run: judge(run, "b", "imagenet_a", 0.5, lacking="confidence"),
    "half a score": lambda run: (
        (run / "predictions/b").mkdir(parents=True),
        (run / "predictions/b/x.tf.json").write_text('{"scores": {}}'),
    ),
}


@pytest.mark.parametrize("kind", [None, *DAMAGE])
def test_damage_is_shown_and_never_breaks_the_page(kind, folder, capsys):
    points = make_chain(folder, 1)
    DAMAGE.get(kind, lambda run: None)(points[1].folder)
    report.write([folder])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
    told = [line.removeprefix("Warning: ") for line in said if str(points[1].folder) in line]
    assert bool(told) == (kind is not None)
    text = html.unescape((folder / "report" / page.PAGE).read_text())
    assert all(line in text for line in told)
    assert len(summary.cycle_rows(gather.gather([folder]))) == len(points)  # all of them have their row


def test_a_torn_line_that_is_not_the_last_is_warned_of(folder):
    [point, *_] = make_chain(folder, 1)
    rows = [{"step": s, "split": "test", "accuracy": 0.5, "loss": 1.0} for s in (0, 10, 20)]
    lines = [json.dumps(row) for row in rows]
    damaged = f"{point.folder / records.METRICS} has damaged rows, which are left out"
    for text, torn in ((lines[:2] + [lines[2][:9]], False), ([lines[0][:9]] + lines[1:], True)):
        (point.folder / records.METRICS).write_text("\n".join(text))
        told = page.write_page([folder], folder / "report").warnings
        assert (damaged in told) == torn


@pytest.mark.parametrize("row", ["1", '{"step": "x"}', '{"accuracy": null}', '{"accuracy": NaN}'])
def test_damaged_measurements_are_left_out_of_every_curve(row, folder):
    [point, *_] = make_chain(folder, 1)
    good = {"step": 0, "split": "test", "accuracy": 0.5, "loss": 1.0}
    bad = json.loads(row)
    bad = good | bad if isinstance(bad, dict) else bad
    lines = [good, bad, good | {"step": 10}, good | {"step": 20}]
    (point.folder / records.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write([folder])
    data = data_of(page.write_page([folder], folder / "report"))
    assert [r["step"] for r in rows_of(data, "learning")] == [0, 10, 20]
    assert [r["step"] for r in rows_of(data, "curves")] == [0, 10, 20]
    assert (folder / "report/report.md").exists()


def test_a_chain_that_has_only_its_rewind_point_is_shown(folder):
    begin(folder, ["imp.py"], chain={"cycles": 2, "trials": 1, "arms": []})
    (folder / "000").mkdir()
    (folder / "000/.lock").write_text("1 on here")
    written = page.write_page([folder], folder / "report")
    assert len(rows_of(data_of(written), "learning")) == 3


@pytest.mark.parametrize("cycles", [2, 3])
@pytest.mark.parametrize("typed", [(), (2,), (0, 1)])
def test_a_whole_chain_some_of_whose_cycles_were_typed_is_not_said_to_be_stopped(typed, cycles, folder):
    known = {"cycles": cycles, "trials": 1, "arms": []}
    for point in make_chain(folder, 1):
        if point.arm:
            point.folder.parent.rmtree()
        elif point.cycle in typed:
            begin(point.folder, ["train.py"])
        else:
            begin(point.folder, ["imp.py"], chain=known)
    begin(folder, ["imp.py"], chain=known)
    records.write_result(folder, known_result("base"))
    told = warnings.warnings(gather.gather([folder]))
    assert any("is stopped at cycle 002 of 003" in line for line in told) == (cycles == 3)


def test_of_a_part_of_a_chain_nothing_is_said_of_the_rest(folder):
    for point in make_chain(folder, 2):
        begin(point.folder, ["imp.py"], chain={"cycles": 2, "trials": 2, "arms": ["reinit"]})
    for part in ("trial_0", "trial_0/001", "trial_0/reinit"):
        told = page.write_page([folder / part], folder / "report").warnings
        assert not any(line.startswith("The chain") for line in told)


def test_a_finished_run_below_another_is_named_and_not_called_absent(folder):
    begin(folder, ["train.py"])
    begin(folder / "fine", ["train.py"])
    records.write_result(folder / "fine", known_result("fine") | {"selected_by": "accuracy"})
    told = page.write_page([folder], folder / "report").warnings
    assert f"1 below that are not shown: {folder}/fine; name them to see them." in told


def test_a_run_that_is_called_as_seeds_would_be_is_no_trial_of_theirs(folder):
    for name in ("digits", "digits__seed=0", "digits__seed=1"):
        begin(folder / name, ["train.py"])
    gathered = gather.gather([folder])
    assert gathered.series == ["digits", "digits__seed=0", "digits__seed=1"]
    assert any("digits: another run is called so" in line for line in gathered.warnings)


def test_a_damaged_run_whose_result_counts_is_said_to_count(folder):
    points = make_chain(folder, 1)
    (points[1].folder / records.CONFIG).write_text("{")
    told = gather.gather([folder]).warnings
    assert any(line.endswith("; its result is whole and counts") for line in told)


def test_a_last_window_whose_steps_all_overflowed_damages_nothing(folder):
    points = make_chain(folder, 1)
    own = {"skipped_steps": 3, "seen": 0}
    none = {"accuracy": 0.0, "correct": 0, "seen": 0}
    rewrite(points[1].folder, records.RESULT, lambda r: r["scores"]["last"].update(train=own, other=none))
    assert not gather.gather([folder]).warnings


def test_a_chain_that_was_stopped_between_two_cycles_is_warned_of(folder):
    known = {"cycles": 4, "trials": 1, "arms": ["reinit"]}
    for point in make_chain(folder, 1):
        begin(point.folder, ["imp.py"], chain=known)
    told = page.write_page([folder], folder / "report").warnings
    [line] = [line for line in told if line.startswith(f"The chain {folder} is stopped")]
    assert "at cycle 002 of 004, 4 runs finished (gave no reason" in line


def test_runs_of_a_sweep_that_have_not_begun_are_warned_of(folder):
    begin(folder / "rigl__seed=0", ["train.py"])
    (folder / "rigl__seed=1").mkdir()
    (folder / "rigl__seed=1/.lock").write_text("1 on here")
    plan = {f"rigl__seed={seed}": {"command": ["python", "train.py"]} for seed in range(3)}
    (folder / records.SWEEP).write_text(json.dumps({"runs": plan}))
    told = "\n".join(page.write_page([folder], folder / "report").warnings)
    one, two = (f"{folder}/rigl__seed={seed}" for seed in (1, 2))
    assert f"2 without anything to show yet: {one} (stopped), {two} (waiting)." in told


def test_means_over_trials_have_their_deviation_and_count(folder):
    points = make_chain(folder, 3)
    written = page.write_page([folder], folder / "report")
    found = {(row[0], row[1]): row for row in written.means[1:]}
    for arm, cycle in {(p.arm, p.cycle) for p in points}:
        own = [p.accuracy("best") for p in points if (p.arm, p.cycle) == (arm, cycle)]
        row = found[arm or "tickets", f"{cycle:03d}"]
        assert row[2] == "3"
        assert row[5] == f"{np.mean(own):.2f} ± {np.std(own, ddof=1):.2f}"
    assert len(found) == len({(p.arm, p.cycle) for p in points})
    assert page.write_page([folder / "trial_0"], folder / "one").means == []


def test_a_score_that_is_not_what_was_counted_is_damaged(folder):
    points = make_chain(folder, 1)
    rewrite(points[1].folder, records.RESULT, lambda r: r["scores"]["best"]["test"].update(accuracy=0.5))
    gathered = gather.gather([folder])
    [told] = [line for line in gathered.warnings if "001" in line and "reinit" not in line]
    assert told.endswith(
        "result.json is damaged and left out: accuracy 0.5 of best on test is not its counts'"
    )
    assert not next(r for r in gathered.shown if r.place.folder == points[1].folder).result


def test_what_differs_between_recipes_is_named_and_comes_first(folder):
    begin(folder / "a", ["train.py"])
    begin(folder / "b", ["train.py"], lr=0.3)
    gathered = gather.gather([folder])
    assert "The recipes differ in optim.lr: see Recipe." in warnings.warnings(gathered)
    assert measure.recipe_rows(gathered)[0] == {"field": "optim.lr", "a": "0.1", "b": "0.3"}


def test_of_one_density_every_series_has_its_column(folder):
    for name in ("a", "b"):
        for point in make_chain(folder / name, 1)[1:]:
            point.folder.rmtree()
    written = page.write_page([folder / "a", folder / "b"], folder / "both")
    chart = next(c for c in written.charts if c.name == "accuracy_by_density")
    where = chart.spec["spec"]["layer"][0]["encoding"]["x"]
    assert (where["field"], where["sort"]) == ("series", ["a tickets", "b tickets"])


def test_chains_side_by_side_have_rewind_points_of_their_own(folder):
    for name in ("a", "b"):
        make_chain(folder / name, 1)
        begin(folder / name, ["imp.py"], chain={"cycles": 2, "trials": 1, "arms": []})
        records.write_result(folder / name, known_result(f"base{name}"))
    written = page.write_page([folder / "a", folder / "b"], folder / "both")
    lanes = {r["lane"] for r in rows_of(data_of(written), "lineage") if r["x"] == -1}
    assert lanes == {"a rewind point", "b rewind point"}
    for name in ("a", "b"):  # of one recipe up to there: one ticket in two places
        records.write_result(folder / name, known_result("same"))
        for cycle in ("000", "001"):
            own = {"parents": {"matching": "same"}, "tickets": {"best": cycle, "last": cycle}}
            rewrite(folder / name / cycle, records.RESULT, lambda r, own=own: r.update(own))
    written = page.write_page([folder / "a", folder / "b"], folder / "both")
    edges = [r for r in rows_of(data_of(written), "lineage") if r["kind"] == "matching"]
    assert {(r["lane"], r["lane2"]) for r in edges} == {(f"{n} rewind point", f"{n} tickets") for n in "ab"}


def test_of_two_pipelines_a_trial_shows_one_and_both_are_warned_of(folder):
    [point, *_] = make_chain(folder, 1)
    for pipeline, accuracy in (("tf", 0.8), ("timm", 0.6)):
        judge(point.folder, "b", "imagenet2012", accuracy, pipeline)
    written = page.write_page([folder], folder / "report")
    rows = [r for r in rows_of(data_of(written), "sets_by_density") if r["series"] == "tickets"]
    assert [(r["value"], r["low"], r["high"], r["trials"]) for r in rows] == [(60, 50, 65, 1)]
    assert any("different evaluation pipelines (tf, timm)" in line for line in written.warnings)


def test_lineage_has_a_line_from_every_ticket_to_its_parents(folder):
    points = make_chain(folder, 1)
    begin(folder, ["imp.py"], chain={"cycles": 2, "trials": 1, "arms": ["reinit"]})
    known = {key: points[0].result[key] for key in ("kept", "prunable", "parameters", "layers", "scores")}
    known |= dict(selected_on="holdout", seed=0, steps=20, best_step=10, parents={})
    for base, names in ((folder, ("a", "c")), (folder / "reinit", ("d", "d"))):
        if base != folder:
            begin(base, ["imp.py"], chain={"cycles": 2, "trials": 1, "arms": ["reinit"]})
        records.write_result(base, known | {"tickets": dict(zip(("best", "last"), names, strict=True))})
    of = {}
    for i, point in enumerate(points):
        parents = {"matching": "d" if point.arm else "c", "previous": f"t{i - 1}"} if point.cycle else {}
        of[f"t{i}"] = parents
        rewrite(
            point.folder,
            records.RESULT,
            lambda r, i=i, p=parents: r.update(tickets={"best": f"t{i}", "last": "l"}, parents=p),
        )
    rows = rows_of(data_of(page.write_page([folder], folder / "report")), "lineage")
    edges = {(r["kind"], r["ticket"]) for r in rows if r["kind"] != "ticket"}
    assert {("matching", name) for name, p in of.items() if p} <= edges
    assert {("previous", name) for name, p in of.items() if p.get("previous") in of} <= edges


def test_rows_of_every_chart_say_which_series_they_belong_to(folder):
    """So that the page's boxes reach them all."""
    for name in ("a", "b"):
        for point in make_chain(folder / name, 2):
            rows = [{"step": s, "split": "test", "accuracy": 0.5, "loss": 1.0} for s in (0, 10, 20)]
            records.MetricsLog(point.folder, -1).write(rows)
    data = data_of(page.write_page([folder / "a", folder / "b"], folder / "both"))
    assert {"curves", "mask_overlap_pairs", "learning"} <= data["charts"].keys()
    for name in data["charts"]:
        for row in rows_of(data, name):
            own = {row.get(field) for field in ("series", "panel", "run", "other")}
            assert own & {*data["series"]} or row["series"] in ("chance", published.NAME), (name, row)


OF_A_CYCLE = {"a": "l", "cycle": 0, "kept": 1, "prunable": 2, "instability": 0.1}
SHORT = {"alphas": [0, 1], "rows": [OF_A_CYCLE | {"error": [0.1]}]}


@pytest.mark.parametrize(
    "found", ["[1]", '{"rows": [{}]}', '{"rows": [{"a": "l", "cycle": 0}]}', json.dumps(SHORT)]
)
def test_a_damaged_analysis_of_instability_is_left_out(found, folder):
    make_chain(folder, 1)
    (folder / paths.INSTABILITY).write_text(found)
    written = page.write_page([folder], folder / "report")
    assert any("instability.json is damaged and left out" in line for line in written.warnings)
    assert "accuracy_by_density" in {chart.name for chart in written.charts}


def test_several_runs_are_series_side_by_side(folder):
    make_chain(folder / "a", 1)
    make_chain(folder / "b", 1)
    written = page.write_page([folder / "a", folder / "b"], folder / "both")
    assert data_of(written)["series"] == ["a tickets", "a reinit", "b tickets", "b reinit"]
    pairs = {r["panel"] for r in rows_of(data_of(written), "mask_overlap_pairs")}
    assert pairs == {"a tickets and a reinit", "b tickets and b reinit", "a tickets and b tickets"}


def looks(chart):
    """{series: (place of its colour, dash, shape)} of a chart."""
    found = {}

    def walk(node):
        for child in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
            walk(child)
        if isinstance(node, dict) and node.get("field") == "series" and "domain" in node.get("scale", {}):
            scale = node["scale"]
            for i, name in enumerate(scale["domain"]):
                look = str(scale["range"][i]) if "range" in scale else str(i % 8)
                found.setdefault(name, set()).add(look)

    walk(chart.spec)
    return {name: tuple(sorted(found[name])) for name in found}


def test_a_series_looks_the_same_in_every_chart_and_like_no_other(folder):
    names = [f"r{i}" for i in range(10)]
    for name in names:
        for point in make_chain(folder / name, 1):
            if name[-1] in "13579":  # so that a chart of the set has other series than one of all
                judge(point.folder, "b", "imagenet_a", 0.5)
    gathered = gather.gather([folder / name for name in names])
    assert len(gathered.series) == 20
    written = page.write_page([folder / name for name in names], folder / "all")
    of = {chart.name: looks(chart) for chart in written.charts}
    first = of["accuracy_by_density"]
    assert set(gathered.series) <= first.keys()
    assert len({first[name] for name in gathered.series}) == 20
    for name in ("sets_by_density", "calibration"):
        [chart] = [chart for chart in written.charts if chart.name == name]
        shown = {row["series"] for row in chart.rows} & {*gathered.series}
        assert len(shown) == 10
        assert {s: of[name][s] for s in shown} == {s: first[s] for s in shown}


def test_seeds_of_a_sweep_are_trials_of_one_series(folder):
    for name in ("set__seed=0", "set__seed=1", "rigl__lr=0.1__seed=0", "alone"):
        begin(folder / name, ["train.py"])
    gathered = gather.gather([folder])
    assert gathered.series == ["alone", "rigl__lr=0.1", "set"]
    assert [r.place.trial for r in gathered.shown if r.series == "set"] == [0, 1]
    assert gathered.names == ["alone", "rigl__lr=0.1", "set"]


def test_a_seed_is_its_trials_number_and_the_first_is_drawn(folder):
    for seed in (10, 2):
        begin(folder / f"rigl__seed={seed}", ["train.py"])
    gathered = gather.gather([folder])
    assert sorted(run.place.trial for run in gathered.shown) == [2, 10]
    assert gathered.firsts == {"rigl": 2}
    assert [run.place.trial for run in gathered.shown] == [2, 10]


def test_runs_of_unlike_recipes_are_never_averaged(folder):
    for name, seed, ni in (("a", 0, 100), ("a", 1, 100), ("b", 0, 100), ("b", 1, 200)):
        begin(folder / f"{name}__seed={seed}", ["train.py"], ni=ni)
    gathered = gather.gather([folder])
    assert gathered.series == ["a", "b__seed=0", "b__seed=1"]
    assert "b: its runs differ in more than their seeds (optim.ni), so each is shown by itself." in (
        gathered.warnings
    )


def test_captions_tell_what_the_bars_are_where_a_trial_lacks_a_cycle(folder):
    points = make_chain(folder, 2)

    def caption():
        written = page.write_page([folder], folder / "report")
        return next(c.caption for c in written.charts if c.name == "accuracy_by_density")

    assert "mean of 2 trials, bars of one standard deviation. " in caption()
    late = next(p for p in points if (p.trial, p.arm, p.cycle) == (1, "", 2))
    (late.folder / records.RESULT).unlink()
    both = "mean of up to 2 trials, bars of one standard deviation, of a single trial its 95% interval. "
    assert both in caption()


def test_a_chart_that_fails_is_told_and_costs_no_other(folder, monkeypatch):
    make_chain(folder, 1)
    monkeypatch.setattr(drawing, "lineage", lambda gathered: 1 / 0)
    written = page.write_page([folder], folder / "report")
    [told] = [line for line in written.warnings if "lineage" in line]
    assert told.endswith("this report is at fault (ZeroDivisionError: division by zero)")
    assert "accuracy_by_density" in {chart.name for chart in written.charts}


def test_unlike_runs_side_by_side_are_warned_of(folder):
    begin(folder / "a", ["train.py"])
    begin(folder / "b", ["train.py"], ni=2000)
    told = warnings.warnings(gather.gather([folder]))
    assert "The runs are of different numbers of steps: a 100, b 2,000." in told
    assert not any("different rules" in line for line in told)


def test_a_cycle_that_begins_just_now_is_not_damaged(folder):
    make_chain(folder, 1)
    (folder / "003").mkdir()
    (folder / "003/.lock").write_text("1 on here")
    gathered = gather.gather([folder])
    assert max(run.cycle for run in gathered.shown) == 2
    assert not any("003" in line for line in gathered.warnings)


def known_result(digest):
    scores = {
        when: {"test": {"accuracy": 0.5, "loss": 1.0, "seen": 2}} for when in ("start", "best", "last")
    }
    counts = dict(kept=4, prunable=4, parameters=5, layers={"fc/kernel": [4, 4]})
    known = dict(selected_on="test", seed=0, steps=20, best_step=10, parents={}, **counts)
    return known | {"scores": scores, "tickets": {"best": digest, "last": digest}}


def begin(run, words, ni=100, lr=0.1, **session):
    """A run that has begun to train and has no result."""
    run.mkdir(parents=True, exist_ok=True)
    recipe = {"evaluation": {"select_on": "holdout"}, "optim": {"ni": ni, "lr": lr}, "seed": 0}
    environment = {"command": words, "executable": "python", "directory": "/"}
    records.record_session(run, recipe, {"environment": environment, "placement": {}, **session})
    rows = [{"step": s, "split": "holdout", "accuracy": 0.5, "loss": 1.0} for s in (0, 10, 20)]
    records.MetricsLog(run, 0).write(rows)


def test_runs_and_chains_that_have_only_begun_are_shown(folder):
    begin(folder / "plain", ["train.py", "--save=x"])
    for trial in ("trial_0", "trial_1"):
        begin(folder / "chain" / trial, ["imp.py"], chain={"cycles": 2, "trials": 2, "arms": []})
    written = page.write_page([folder], folder / "report")
    assert data_of(written)["series"] == ["trial_0", "trial_1", "plain"]
    assert any(line.startswith("3 stopped, not finished") for line in written.warnings)
    assert "python imp.py" in (written.folder / page.PAGE).read_text()
    assert len(rows_of(data_of(written), "learning")) == 9


def test_a_folder_without_runs_is_refused_with_what_to_name(folder):
    folder.mkdir()
    with pytest.raises(
        Refusal, match=r"no run and no chain .* name a folder of train.py, imp.py or sweep.py"
    ):
        page.write_page([folder], folder / "report")


def test_only_a_watched_page_loads_itself_again_and_a_change_is_seen(folder):
    points = make_chain(folder, 1)
    before = gather.signature([folder])
    assert gather.signature([folder]) == before
    text = (page.write_page([folder], folder / "report", watch=7).folder / page.PAGE).read_text()
    assert '<meta http-equiv="refresh" content="7">' in text
    assert 'http-equiv="refresh"' not in (
        page.write_page([folder], folder / "report").folder / page.PAGE
    ).read_text().replace(page.bundle(), "")
    (folder / paths.INSTABILITY).write_text("{}")
    analysed = gather.signature([folder])
    assert analysed != before
    with locks.locked([folder]):
        assert gather.signature([folder]) != analysed
    (points[0].folder / records.RESULT).unlink()
    assert gather.signature([folder]) != analysed
