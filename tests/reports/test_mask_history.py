"""What happened to the mask of a run, from rows as updates write them."""

import csv
import itertools
import json

import numpy as np
import pytest
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import gather, mask_charts, mask_history, reading, report
from giung2_ext.storage import paths, records, tickets

SHAPES = {"a": (12, 10), "b": (3, 3, 4, 6), "cls": (10, 5)}


def masks_over(updates, seed=0):
    """Masks that lose and gain at random, and the rows that a run would have written of them."""
    draw = np.random.default_rng(seed)
    masks = {name: draw.random(shape) < 0.8 for name, shape in SHAPES.items()}
    start = {name: mask.copy() for name, mask in masks.items()}
    ever, rows, all_masks = {n: m.copy() for n, m in masks.items()}, [], [start]
    for update in range(updates):
        new = {
            n: (m & (draw.random(m.shape) < 0.9)) | (draw.random(m.shape) < 0.05) for n, m in masks.items()
        }
        ever = {n: ever[n] | new[n] for n in new}
        layers = {
            f"{n}/kernel": [int(x.sum()) for x in (new[n], new[n] & ~masks[n], masks[n] & ~new[n], ever[n])]
            for n in new
        }
        rows.append({"step": 10 * (update + 1), "layers": layers})
        masks = new
        all_masks.append(new)
    return rows, all_masks, ever


def write_run(folder, updates=20):
    rows, all_masks, ever = masks_over(updates)
    draw = np.random.default_rng(1)
    masks = {name: {"kernel": mask} for name, mask in all_masks[-1].items()}
    params = {
        n: {"kernel": (draw.normal(size=m["kernel"].shape) * m["kernel"]).astype(np.float32)}
        for n, m in masks.items()
    }
    path, meta = tickets.write_ticket(folder, params, masks, {}, {"seed": 0})
    tickets.name_ticket(folder, paths.LAST, path)
    records.Lines(folder / records.MOVES, 0).write(rows)
    scores = {"test": {"accuracy": 0.9}, "holdout": {"accuracy": 0.8}}
    counts = {key: meta[key] for key in ("kept", "prunable", "parameters", "layers")}
    result = dict(scores={"best": scores}, selected_on="holdout", best_step=200, steps=200, **counts)
    records.write_result(folder, result | {"training_flops": [50, 200]})
    return rows, all_masks, ever


def test_a_history_is_that_of_the_masks_the_starting_one_included():
    rows, all_masks, ever = masks_over(20)
    sizes = {f"{name}/kernel": int(np.prod(shape)) for name, shape in SHAPES.items()}
    history = mask_history.read_history(json.loads(json.dumps(rows)), sizes)
    assert history.steps.tolist() == list(range(0, 201, 10))
    for name in SHAPES:
        layer = history.layers[f"{name}/kernel"]
        assert layer.kept.tolist() == [int(masks[name].sum()) for masks in all_masks]
        assert layer.ever[-1] == ever[name].sum()
        assert layer.ever[0] == layer.kept[0]
        moved = [int((b[name] & ~a[name]).sum()) for a, b in itertools.pairwise(all_masks)]
        assert layer.grown[1:].tolist() == moved
    assert history.total("kept")[-1] == sum(mask.sum() for mask in all_masks[-1].values())
    assert history.size == sum(sizes.values())


def test_ranks_are_those_of_the_matrix_and_of_nine_tenths_of_its_energy():
    draw = np.random.default_rng(0)
    left, right = np.linalg.qr(draw.normal(size=(36, 6)))[0], np.linalg.qr(draw.normal(size=(8, 6)))[0]
    sizes = np.sqrt([0.5, 0.3, 0.12, 0.05, 0.03, 0.0])
    kernel = (left * sizes @ right.T).reshape(3, 3, 4, 8).astype(np.float32)
    assert mask_history.ranks(kernel) == (5, 3)
    assert mask_history.ranks(np.zeros((4, 4))) == (0, 0)
    assert mask_history.ranks(np.eye(15)) == (15, 14)


def test_a_magnitude_mask_keeps_as_many_of_the_largest():
    kernel = np.array([[3.0, -1.0, 2.0], [0.5, -4.0, 1.0]])
    assert mask_history.largest(kernel, 3).tolist() == [[3, 0, 2], [0, -4, 0]]
    assert mask_history.largest(kernel, 4).tolist() == [[3, -1, 2], [0, -4, 0]]  # of equal ones the first


def test_a_report_has_tables_figures_and_notes_that_say_what_they_are(tmp_path, capsys):
    folder = epath.Path(tmp_path) / "run"
    rows, _, ever = write_run(folder)
    other = tmp_path / "dense"
    params = {n: {"kernel": np.ones(s, np.float32)} for n, s in SHAPES.items()}
    masks = {n: {"kernel": np.ones(s, bool)} for n, s in SHAPES.items()}
    path, _ = tickets.write_ticket(epath.Path(other), params, masks, {}, {"seed": 0})
    report.write([folder], against=str(path))
    written = folder / "report"
    text = (written / "report.md").read_text()
    assert "90.00% of the ticket of step 200" in text
    assert "FLOPs of training: 50 (0.2500 of a dense network's)" in text
    assert "20 updates" in text
    assert str(path) in text
    assert text.split("\n\n")[1] in capsys.readouterr().out
    table = list(csv.DictReader((written / "updates.csv").read_text().splitlines()))
    assert len(table) == 21
    assert int(table[-1]["kept"]) == sum(kept for kept, *_ in rows[-1]["layers"].values())
    layers = list(csv.DictReader((written / "layers.csv").read_text().splitlines()))
    assert [row["layer"] for row in layers] == list(SHAPES)
    assert all(int(row["magnitude: rank of 90%"]) < int(row["rank of 90%"]) for row in layers)
    assert float(layers[0]["ever kept"]) == pytest.approx(ever["a"].mean(), abs=1e-4)
    for name in ("layers_over_time", "moves"):
        assert (written / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"figures/{name}.png" in text


def test_a_magnitude_mask_of_a_sparser_ticket_is_refused(tmp_path):
    folder = epath.Path(tmp_path) / "run"
    rows, *_ = write_run(folder)
    kept = rows[-1]["layers"]["b/kernel"][0]
    masks = {n: {"kernel": np.ones(s, bool)} for n, s in SHAPES.items()}
    masks["b"]["kernel"].ravel()[kept - 1 :] = False
    params = {n: {"kernel": m["kernel"].astype(np.float32)} for n, m in masks.items()}
    path, _ = tickets.write_ticket(epath.Path(tmp_path / "sparse"), params, masks, {}, {"seed": 0})
    with pytest.raises(Refusal, match=f"has {kept - 1} weights in b/kernel, of which the {kept} largest"):
        mask_history.write_report(folder, str(path))


def test_lines_are_the_history_thinned_with_a_point_at_every_third():
    rows, *_ = masks_over(100)
    history = mask_history.read_history(rows, {f"{n}/kernel": int(np.prod(s)) for n, s in SHAPES.items()})
    layers = mask_history.layer_rows(history, "run")
    for name, layer in history.layers.items():
        own = [r for r in layers if r["series"] == name.removesuffix("/kernel")]
        assert len(own) == mask_history.POINTS
        assert (own[0]["step"], own[-1]["step"]) == (0, 1000)
        at = {step: kept / layer.size for step, kept in zip(history.steps, layer.kept, strict=True)}
        assert [r["value"] for r in own] == [at[r["step"]] for r in own]
        assert sum(r["low"] is not None for r in own) == 14
    new = [r for r in mask_history.move_rows(history, "run") if r["series"] == "new"]
    part = 100 * mask_history.churn(history.total("grown"), history.total("kept"))
    assert [r["value"] for r in new] == [part[list(history.steps).index(r["step"])] for r in new]
    assert new[0]["step"] == 10  # the starting mask is no update


@pytest.mark.parametrize("many", [3, 30])
def test_few_layers_are_lines_and_many_a_map(many, tmp_path):
    folder = epath.Path(tmp_path) / "run"
    rows, *_ = masks_over(8)
    history = mask_history.read_history(
        [
            {"step": r["step"], "layers": {f"l{i}": r["layers"]["a/kernel"] for i in range(many)}}
            for r in rows
        ],
        {f"l{i}": 120 for i in range(many)},
    )
    found = mask_history.layer_rows(history, folder.name), mask_history.move_rows(history, folder.name)
    layers, moves = mask_charts.moving([found])
    marks = {layer["mark"]["type"] for layer in layers.spec["spec"]["layer"]}
    assert ("rect" in marks) == (many == 30)
    assert {row["series"] for row in layers.rows} == {"whole network", *(f"l{i}" for i in range(many))}
    assert {row["series"] for row in moves.rows} == {"new", "kept", "ever kept"}


def test_of_the_seeds_of_a_sweep_the_first_is_drawn(tmp_path):
    root = epath.Path(tmp_path)
    for seed, updates in ((4, 7), (3, 5)):
        write_run(root / f"set__seed={seed}", updates)
    layers, _ = mask_charts.masks_over_time(gather.gather([root]), reading.Reader())
    assert {row["panel"] for row in layers.rows} == {"set"}
    assert max(row["step"] for row in layers.rows) == 50


def test_what_has_no_history_is_refused(tmp_path):
    folder = epath.Path(tmp_path) / "run"
    write_run(folder)
    records.Lines(folder / records.MOVES, 0)
    with pytest.raises(Refusal, match="no update"):
        mask_history.write_report(folder)
    (folder / records.RESULT).unlink()
    with pytest.raises(Refusal, match="is not finished"):
        mask_history.write_report(folder)
