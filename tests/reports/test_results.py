"""Every run and every measurement is written once, whatever is missing beside it."""

import csv
import json
import re
import statistics

import numpy as np
import pytest
from etils import epath

from giung2_ext.reports import chain, gather, measure, page, reading, report, results, tables
from giung2_ext.storage import paths, records, tickets

PLACES = [
    "trial_0/000",
    "trial_0/001",
    "trial_0/002",
    "trial_0/reinit/001",
    "trial_0/sibling/000",  # an arm of cycle 000 alone
    "trial_3/000",
    "trial_3/late/002",  # and one without the first ones
]
STEPS = (0, 50, 100)
TICKETS = ("early_stop", "curves", "instability", "barrier")


def scores(draw):
    return {
        split: {"accuracy": draw.random(), "loss": 3 * draw.random(), "seen": 1397}
        for split in ("holdout", "test")
    }


def last_of(seed):
    return f"{seed:064d}"


def make_run(folder, seed, selected_by="loss", selected_on="holdout"):
    """What a finished run leaves: recipe, metrics of three splits, ticket, result."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    recipe = {
        "model": {"name": "conv", "depth": 4},
        "data": {"name": "cifar10"},
        "optim": {"ni": STEPS[-1]},
    }
    recipe["evaluation"] = {"select_on": selected_on, "select_by": selected_by}
    records.record_session(folder, recipe, {})
    rows = [
        {"step": step, "split": split, "accuracy": draw.random(), "loss": draw.random()}
        for step in STEPS
        for split in ("train", "holdout", "test")
    ]
    records.MetricsLog(folder, 0).write(rows)
    masks = {"fc": {"kernel": draw.random((20, 10)) < 0.5}}
    params = {"fc": {"kernel": masks["fc"]["kernel"] * 1.0}}
    path, meta = tickets.write_ticket(folder, params, masks, {}, {"seed": seed, "num_classes": 4})
    tickets.name_ticket(folder, paths.best(selected_by), path)
    result = {key: meta[key] for key in ("kept", "prunable", "parameters", "layers")}
    result |= dict(selected_on=selected_on, selected_by=selected_by, seed=seed, steps=STEPS[-1], parents={})
    result |= dict(
        best_step=int(draw.integers(1000, 9000)), tickets=dict(best="b" * 64, last=last_of(seed))
    )
    result["scores"] = {when: scores(draw) for when in ("start", "best", "last")}
    records.write_result(folder, result)


@pytest.fixture
def folder(tmp_path):
    for seed, place in enumerate(PLACES):
        make_run(epath.Path(tmp_path) / "chain" / place, seed)
    return epath.Path(tmp_path) / "chain"


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def place_of(row):
    arm = "" if row["arm"] == "ticket" else f"{row['arm']}/"
    return f"trial_{row['trial']}/{arm}{int(row['round']):03d}"


def test_every_run_is_in_the_results_once_as_it_was_recorded(folder):
    rows = read_csv(chain.write_report(folder) / "results.csv")
    assert sorted(map(place_of, rows)) == sorted(PLACES)
    for row in rows:
        result = json.loads((folder / place_of(row) / "result.json").read_text())
        best = result["scores"]["best"]
        assert (row["arch"], row["identifier"]) == ("conv4", "chain")
        assert int(row["iterations"]) == 100
        assert float(row["best_validation_loss"]) == best["holdout"]["loss"]
        assert int(row["best_iteration"]) == result["best_step"]
        assert float(row["acc_at_best_iter"]) == best["test"]["accuracy"]
        assert float(row["loss_at_best_iter"]) == best["test"]["loss"]
        assert int(row["num_weights"]) == result["kept"]
        assert float(row["percent_weights"]) == pytest.approx(100 * result["kept"] / 200)
        assert int(row["seed"]) == result["seed"] == PLACES.index(place_of(row))
    assert ",".join(rows[0]) == (
        "arch,identifier,trial,round,iterations,best_validation_loss,best_iteration,acc_at_best_iter,"
        "loss_at_best_iter,num_weights,percent_weights,arm,seed"
    )


def test_only_of_an_early_stop_is_the_lowest_validation_loss_known(tmp_path):
    ways = [("loss", "holdout"), ("accuracy", "holdout"), ("loss", "test"), ("accuracy", "test")]
    folder = epath.Path(tmp_path)
    for cycle, way in enumerate(ways):
        make_run(folder / f"{cycle:03d}", cycle, *way)
    rows = read_csv(chain.write_report(folder) / "results.csv")
    best = records.read_result(folder / "000")["scores"]["best"]
    assert [row.pop("best_validation_loss") for row in rows] == [str(best["holdout"]["loss"]), "", "", ""]
    assert all(cell for row in rows for cell in row.values())


def test_every_measurement_of_the_test_split_is_written_once_and_no_other(folder):
    rows = read_csv(chain.write_report(folder) / "test_acc.csv")
    assert ",".join(rows[0]) == "identifier,trial,round,iteration,test_acc,test_loss,arm,seed"
    assert {row["identifier"] for row in rows} == {"chain"}
    for seed, place in enumerate(PLACES):
        own = [row for row in rows if place_of(row) == place]
        found = [(int(r["iteration"]), float(r["test_acc"]), float(r["test_loss"]), r["seed"]) for r in own]
        measured = [m for m in records.read_metrics(folder / place) if m["split"] == "test"]
        assert found == [(m["step"], m["accuracy"], m["loss"], str(seed)) for m in measured]
    assert len(rows) == len(PLACES) * len(STEPS)


def test_arms_are_found_whichever_cycles_of_them_are_there(folder):
    points = chain.read_chain(folder)
    found = {(p.trial, p.arm, p.cycle) for p in points}
    assert {(0, "sibling", 0), (3, "late", 2)} <= found
    assert len(points) == len(found) == len(PLACES)


def test_the_identifier_is_the_folders_name_from_inside_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    written = chain.write_report(".")
    assert {row["identifier"] for row in read_csv(written / "results.csv")} == {"chain"}
    assert (written / "report.md").read_text().startswith("# chain\n")


def test_a_network_is_named_with_its_depth_if_it_has_one(tmp_path):
    folder = epath.Path(tmp_path)
    assert results.arch(folder) == ""
    records.record_session(folder, {"model": {"name": "lenet", "hidden": [300, 100]}}, {})
    assert results.arch(folder) == "lenet"
    records.record_session(folder, {"model": {"name": "conv", "depth": 2, "pool": 2}}, {})
    assert results.arch(folder) == "conv2"


def test_what_is_missing_or_damaged_beside_a_result_does_not_break_the_page(folder):
    (folder / "trial_0/000/metrics.jsonl").unlink()
    with (folder / "trial_0/001/metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "split": "test", "seen": 0}\n{"step": 200, "split": "test", "accu')
    (folder / "trial_0/001/config.json").unlink()
    (folder / "trial_0/002/config.json").write_text('{"recipe": ')
    (folder / "trial_0/002/best_loss.ckpt/arrays.npz").write_bytes(b"not what was saved")
    (folder / "trial_3/000/best_loss.ckpt").unlink()
    make_run(folder / "trial_3/001", 50)
    (folder / "trial_3/001/result.json").unlink()  # it has only begun
    report.write([folder])
    runs, measured = (read_csv(folder / f"report/{name}.csv") for name in ("results", "test_acc"))
    assert sorted(map(place_of, runs)) == sorted(PLACES)
    unnamed = [place_of(row) for row in runs if row["arch"] == ""]
    assert unnamed == ["trial_0/001", "trial_0/002"]
    places = list(map(place_of, measured))
    assert [places.count(place) for place in PLACES] == [0, 3, 3, 3, 3, 3, 3]
    text = (folder / "report/report.md").read_text()
    warned = [line for line in text.splitlines() if line.startswith("- Warning")]
    assert all(any(place in line for line in warned) for place in ("trial_0/001", "trial_0/002"))
    assert not any("/000 " in line for line in warned)


def test_a_chain_without_tickets_has_no_overlap_to_draw(folder):
    for p in chain.read_chain(folder):
        p.best.unlink()
    names = {found.name for found in page.write_page([folder], folder / "report").charts}
    assert "accuracy_by_density" in names
    assert not {"mask_overlap", "mask_overlap_pairs", "weight_sizes"} & names


def test_masks_are_those_of_the_ticket_that_was_selected(tmp_path):
    folder = epath.Path(tmp_path) / "chain"
    make_run(folder / "000", 1)
    stranger = {"fc": {"kernel": np.ones((20, 10), bool)}}
    path, _ = tickets.write_ticket(folder / "000", {"fc": {"kernel": np.ones((20, 10))}}, stranger, {}, {})
    tickets.name_ticket(folder / "000", paths.best("accuracy"), path)
    [point] = chain.read_chain(folder)
    gathered = gather.gather([folder])
    [masks] = measure.masks_of(gathered, reading.Reader()).values()
    assert sum(int(np.bitwise_count(mask).sum()) for mask in masks.values()) == point.result["kept"]
    make_run(folder / "001", 2, selected_by="accuracy")
    result = records.read_result(folder / "001")
    del result["selected_by"]  # as older results are
    records.write_result(folder / "001", result)
    points = chain.read_chain(folder)
    assert [p.best.name for p in points] == ["best_loss.ckpt", "best_acc.ckpt"]


def test_early_stops_have_columns_of_their_own_that_a_program_can_read(folder):
    make_run(folder / "trial_3/001", 30)
    make_run(folder / "trial_3/reinit/001", 31)
    points = chain.read_chain(folder)
    table = tables.chain_table(points)
    assert table[0][-4:] == ["early stop", "late early stop", "reinit early stop", "sibling early stop"]
    stops = {
        arm: [p.result["best_step"] for p in points if p.cycle == 1 and p.arm == arm]
        for arm in ("", "reinit")
    }
    means, sds = ([round(f(stops[arm])) for arm in stops] for f in (statistics.mean, statistics.stdev))
    row = table[2]
    assert row[-4:] == [f"{means[0]:,} ± {sds[0]:,}", "–", f"{means[1]:,} ± {sds[1]:,}", "–"]
    found = list(csv.DictReader(tables.to_csv(table).splitlines()))[1]
    assert [found["early stop"], found["early stop sd"]] == [str(means[0]), str(sds[0])]
    assert [found["reinit early stop"], found["reinit early stop sd"]] == [str(means[1]), str(sds[1])]
    assert [found["late early stop"], found["late early stop sd"]] == ["", ""]


def test_what_was_selected_by_accuracy_has_no_early_stop(tmp_path):
    make_run(epath.Path(tmp_path) / "000", 1, selected_by="accuracy")
    points = chain.read_chain(epath.Path(tmp_path))
    assert not any("early stop" in name for name in tables.chain_table(points)[0])
    told = "\n".join(chain.notes(points))
    assert "best_acc.ckpt, which was selected on holdout" in told
    assert "loss" not in told
    make_run(epath.Path(tmp_path) / "001", 2)
    table = tables.chain_table(chain.read_chain(epath.Path(tmp_path)))
    assert table[0][-1] == "early stop"
    assert table[1][-1] == "–" != table[2][-1]


def test_notes_say_what_stopped_a_run_and_what_bars_are(folder):
    points = chain.read_chain(folder)
    told = "\n".join([*chain.notes(points), *chain.file_notes(points)])
    assert "best_loss.ckpt, the early stop, which was selected by the loss on holdout" in told
    assert "best_acc" not in told
    assert "over 2 trials." in told
    assert "from the lowest to the highest" in told


def make_instability(trials=3):
    draw = np.random.default_rng(0)
    rows = []
    for trial in range(trials):
        for cycle, kept in ((0, 200), (4, 80 + trial)):
            error = draw.random(5)
            known = dict(trial=trial, cycle=cycle, kept=kept, prunable=200, a=last_of(trial), b="b" * 64)
            apart = error.max() - (error[0] + error[-1]) / 2
            rows.append(known | dict(error=error.tolist(), loss=[1.0] * 5, instability=apart))
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    return dict(dataset="cifar10", split="test", about="7 images", alphas=alphas, rows=rows)


def test_the_table_of_instability_is_the_file_by_cycle():
    found = make_instability()
    table = tables.instability_table(found)
    assert [row[:3] for row in table[1:]] == [["000", "200", "1.0000"], ["004", "80–82", "0.4000"]]
    for row, cycle in zip(table[1:], (0, 4), strict=True):
        own = [r for r in found["rows"] if r["cycle"] == cycle]
        errors = 100 * np.array([r["error"] for r in own])
        columns = [errors[:, 0], errors[:, -1], errors.max(axis=1)]
        columns.append(100 * np.array([r["instability"] for r in own]))
        assert row[3:] == [f"{c.mean():.2f} ± {c.std(ddof=1):.2f}" for c in columns]


def test_an_analysis_of_instability_joins_the_page(folder):
    text = (chain.write_report(folder) / "report.md").read_text()
    assert "nstability" not in text.replace("curves and instability", "")
    found = make_instability() | {"statistics": "estimated anew"}
    (folder / "instability.json").write_text(json.dumps(found))
    written = chain.write_report(folder)
    text = (written / "report.md").read_text()
    assert (written / "instability.md").read_text() in text
    assert "5 places, on cifar10 test, 7 images" in text
    assert "BatchNorm statistics on the line: estimated anew." in text
    rows = read_csv(written / "instability.csv")
    assert [row["cycle"] for row in rows] == ["000", "004"]
    assert "instability % sd" in rows[0]
    assert "Warning" not in text


def test_an_analysis_of_tickets_that_the_chain_no_longer_has_is_left_out(folder):
    analysed = make_instability()
    (folder / "instability.json").write_text(json.dumps(analysed))
    again = folder / PLACES[1] / "result.json"
    result = json.loads(again.read_text())
    result["tickets"]["last"] = "d" * 64
    again.write_text(json.dumps(result))
    report.write([folder])
    kept = [row for row in analysed["rows"] if row["a"] != last_of(1)]
    expected = tables.to_markdown(tables.instability_table(analysed | {"rows": kept}))
    assert (folder / "report/instability.md").read_text() == expected + "\n"
    text = (folder / "report/report.md").read_text()
    assert re.search(r"figures/instability.png\)\n\n.*mean of 2 trials", text)
    assert (
        "\n- Warning: 2 rows of instability.json are of tickets that this chain no longer has: "
        "run instability.py again.\n" in text
    )
    result["tickets"]["best"] = last_of(1)  # lines are between last tickets
    again.write_text(json.dumps(result))
    lasts = {p.result["tickets"]["last"] for p in chain.read_chain(folder)}
    assert results.read_instability(folder, lasts)["rows"] == kept


def test_an_analysis_of_other_tickets_alone_has_a_warning_and_nothing_else(folder):
    analysed = make_instability()
    for row in analysed["rows"]:
        row["a"] = "a" * 64
    (folder / "instability.json").write_text(json.dumps(analysed))
    report.write([folder])
    text = (folder / "report/report.md").read_text()
    assert "- Warning: 6 rows of instability.json" in text
    assert "Instability:" not in text
    assert not (folder / "report/instability.md").exists()
    assert not (folder / "report/figures/instability.png").exists()


def test_every_figure_is_in_the_text_with_its_caption(tmp_path):
    folder = epath.Path(tmp_path) / "chain"
    for seed, place in enumerate(("000", "001", "reinit/001")):
        make_run(folder / place, seed)
    (folder / "instability.json").write_text(json.dumps(make_instability()))
    report.write([folder])
    lines = (folder / "report/report.md").read_text().splitlines()
    captions = {
        line[2 : line.index("]")]: lines[i + 2] for i, line in enumerate(lines) if line.startswith("![")
    }
    assert {f"{name}.png" for name in captions} == {
        p.name for p in (folder / "report/figures").glob("*.png")
    }
    assert {"accuracy_by_density", "layer_densities", "mask_overlap", *TICKETS} <= captions.keys()
    assert all(caption.endswith(".") for caption in captions.values())
    assert "mean of 3 trials" in captions["instability"]
    assert "one trial" in captions["curves"]


def test_an_analysis_that_has_only_begun_has_no_table(folder):
    (folder / "instability.json").write_text(json.dumps(make_instability() | {"rows": []}))
    written = chain.write_report(folder)
    assert not (written / "instability.md").exists()
