"""Tables say exactly what results say, in three forms that can be read back."""

import csv
import io
import re
import statistics

import pytest
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import chain, tables
from giung2_ext.storage import records


def make_result(kept, best, start=0.1, selected_on="holdout"):
    def scores(accuracy):
        return {"test": {"accuracy": accuracy, "correct": 0, "seen": 1397}}

    return {
        "kept": kept,
        "prunable": 1000,
        "parameters": 1250,
        "layers": {"fc/kernel": [kept - 10, 900], "cls/kernel": [10, 100]},
        "selected_on": selected_on,
        "seed": 3,
        "best_step": 20,
        "tickets": {"best": "b" * 64, "last": "l" * 64},
        "parents": {"matching": "m" * 64},
        "scores": {"start": scores(start), "best": scores(best), "last": scores(best - 0.01)},
    }


def make_points(trials=3):
    """Two cycles of tickets, and an arm that has only the second."""
    points = []
    for t in range(trials):
        for cycle, kept in ((0, 1000), (1, 800 + t)):
            points.append(
                chain.Point(t, "", cycle, None, make_result(kept, 0.90 + 0.02 * t, 0.1 + 0.01 * t))
            )
        points.append(chain.Point(t, "re_init", 1, None, make_result(800 + t, 0.5 + 0.1 * t)))
    return points


def test_costs_add_up_from_the_rewind_point_on():
    flops = [dict(prunable=100, kept=k, all=200, all_kept=100 + k) for k in (100, 80)]
    points = make_points(2)
    for point in points:
        point.result.update(flops=flops[point.cycle], training_flops=[1000 - 250 * point.cycle, 1000])
    header, dense, pruned = tables.cost_table(points, {"training_flops": [500, 500]})
    assert header[-1] == "of finding, in dense trainings"
    assert dense == ["000", "1,000", "1.0000", "1.0000", "200", "1.0000", "1000", "1.0000", "1.50"]
    assert pruned == ["001", "800", "0.8000", "0.8400", "180", "0.9000", "750", "0.7500", "2.25"]
    assert tables.cost_table(points)[-1][-1] == "1.75"  # where the rewind point came from elsewhere
    del points[0].result["training_flops"]
    header, dense, pruned = tables.cost_table(points)
    assert dense == ["000", "1,000", "1.0000", *["–"] * 6]
    assert pruned[-3:] == ["750", "0.7500", "–"]


def test_cells_are_exact_means_and_sample_deviations():
    assert tables.chain_table(make_points()) == [
        [
            "cycle",
            "weights left",
            "density",
            "density of all",
            "test % at iteration 0",
            "test %",
            "re_init test %",
        ],
        ["000", "1,000", "1.0000", "1.0000", "11.00 ± 1.00", "92.00 ± 2.00", "–"],
        ["001", "800–802", "0.8000", "0.8400", "11.00 ± 1.00", "92.00 ± 2.00", "60.00 ± 10.00"],
    ]


def test_a_single_trial_has_no_spread_and_no_trial_a_dash():
    row = tables.chain_table(make_points(trials=1))[2]
    assert row == ["001", "800", "0.8000", "0.8400", "10.00", "90.00", "50.00"]
    assert tables.spread([]) == "–"
    values = [97.1, 98.4, 98.4, 96.25]
    assert tables.spread(values) == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def test_every_arm_has_a_column_of_its_own():
    points = [
        *make_points(2),
        *(chain.Point(t, "random", 1, None, make_result(800, 0.3)) for t in range(2)),
    ]
    table = tables.chain_table(points)
    assert [row[-2:] for row in table] == [
        ["random test %", "re_init test %"],
        ["–", "–"],
        ["30.00 ± 0.00", "55.00 ± 7.07"],
    ]


def test_an_arm_without_a_ticket_cycle_adds_no_row():
    points = [*make_points(), chain.Point(0, "re_init", 2, None, make_result(640, 0.4))]
    assert [row[0] for row in tables.chain_table(points)] == ["cycle", "000", "001"]


def test_csv_parses_back_into_the_numbers():
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(tables.chain_table(make_points())))))
    assert len(rows[0]) == 10
    assert [float(row["density"]) for row in rows] == [1.0, 0.8]
    assert int(rows[0]["weights left"]) == 1000
    assert [(float(row["test %"]), float(row["test % sd"])) for row in rows] == [(92, 2), (92, 2)]
    assert (rows[0]["re_init test %"], rows[0]["re_init test % sd"]) == ("", "")
    assert (rows[1]["re_init test %"], rows[1]["re_init test % sd"]) == ("60.00", "10.00")
    single = list(csv.DictReader(io.StringIO(tables.to_csv(tables.chain_table(make_points(1))))))
    assert (single[1]["test %"], single[1]["test % sd"]) == ("90.00", "")


def test_latex_is_balanced_escaped_and_of_equal_columns():
    table = tables.chain_table(make_points())
    text = tables.to_latex(table)
    assert re.findall(r"\\(begin|end){tabular}", text) == ["begin", "end"]
    assert text.isascii()
    assert not re.search(r"(?<!\\)[%_#]", text)  # else a comment, a subscript or an error
    assert text.count("$") == 2 * text.count(r"$\pm$") == 2 * 5
    columns = re.search(r"\\begin{tabular}{(r+)}", text)[1]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == len(table)
    assert {row.count("&") + 1 for row in rows} == {len(columns)} == {len(table[0])}
    assert rows[1].endswith(r"92.00 $\pm$ 2.00 & -- \\")


def test_markdown_lines_up():
    table = tables.chain_table(make_points())
    lines = tables.to_markdown(table).splitlines()
    assert len(lines) == len(table) + 1
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0], *cells[2:]] == table
    assert all(re.fullmatch(r"-+:", cell) for cell in cells[1])


def test_a_chain_is_read_from_its_finished_cycles(tmp_path):
    for place in ("trial_0/000", "trial_0/001", "trial_0/reinit/001", "trial_2/000", "trial_10/000"):
        folder = epath.Path(tmp_path) / place
        folder.mkdir(parents=True)
        kept = 700 + int(place.split("/")[0].split("_")[1])
        records.write_result(folder, make_result(kept, 0.9))
    for unfinished in ("trial_0/002", "trial_0/tickets", "trial_0/reinit/002"):
        (tmp_path / unfinished).mkdir()
    points = chain.read_chain(epath.Path(tmp_path))
    found = [(p.trial, p.arm, p.cycle, p.result["kept"]) for p in points]
    assert found == [
        (0, "", 0, 700),
        (0, "", 1, 700),
        (0, "reinit", 1, 700),
        (2, "", 0, 702),
        (10, "", 0, 710),
    ]
    assert points[0].density == 0.7
    assert [points[0].accuracy(when) for when in ("start", "best", "last")] == pytest.approx([10, 90, 89])
    one = chain.read_chain(epath.Path(tmp_path) / "trial_0")
    assert [(p.trial, p.arm, p.cycle) for p in one] == [(0, "", 0), (0, "", 1), (0, "reinit", 1)]


def test_a_folder_without_finished_cycles_is_refused(tmp_path):
    (tmp_path / "000").mkdir()
    with pytest.raises(Refusal, match=f"no finished cycle .* below {re.escape(str(tmp_path))}"):
        chain.read_chain(epath.Path(tmp_path))


def test_notes_say_what_was_measured_and_warn_of_selection_on_test():
    calm = "\n".join(chain.notes(make_points()))
    assert "1,397 test images" in calm
    assert "selected on holdout" in calm
    assert "over 3 trials" in calm
    assert "Warning" not in calm
    result = make_result(900, 0.9, selected_on="test")
    alone = "\n".join(chain.notes([chain.Point(0, "", 0, None, result)]))
    assert "One trial" in alone
    assert "Warning: selected on the test split" in alone


def judged(**top1):
    """Scores as they are kept, of sets with one way to judge; of R two."""
    one = lambda value: {"top1": [value, value - 0.1, value + 0.1]}  # noqa: E731
    found = {
        name: {
            "dataset": name,
            "pipeline": "timm",
            "seen": 500,
            "scores": {"all": one(value)},
        }
        for name, value in top1.items()
    }
    if "imagenet_r" in found:
        found["imagenet_r"]["scores"] = {"200": one(top1["imagenet_r"]), "all": one(0.01)}
    return found


def test_the_table_of_shifts_has_a_column_for_every_set_that_any_cycle_was_judged_on():
    points = [
        point._replace(
            result=point.result | {"flops": {"all_kept": 4.1e9 / (1 + point.cycle)}},
            judged=judged(imagenet2012=0.7 + 0.01 * point.trial, imagenet_r=0.3)
            if point.cycle == 0
            else judged(imagenet_r=0.25),
        )
        for point in make_points(2)
    ]
    assert tables.shift_table(points) == [
        ["Cycle", "# Params (Conv)", "IN %", "IN-R %", "GFLOPs", "density of all"],
        ["000", "1,000", "70.50 ± 0.71", "30.00 ± 0.00", "4.1", "1.0000"],
        ["001", "800", "–", "25.00 ± 0.00", "2.05", "0.8400"],
    ]
    told = "\n".join(chain.shift_notes(points))
    assert "on imagenet_r, 500 examples, among 200 classes, pipeline timm" in told
    assert "15.00 to 35.00" in told


def test_rows_of_different_images_are_warned_of():
    points = [p._replace(judged=judged(imagenet_a=0.1)) for p in make_points(1) if p.arm == ""]
    assert not any("Warning" in line for line in [*chain.shift_notes(points), *chain.notes(points)])
    points[1].judged["imagenet_a"]["images"] = "80:other"
    assert "Warning: the rows of IN-A are of different images or pipelines." in chain.shift_notes(points)
    points[1].result["images"] = {"train": "100:prepared"}
    warning = "Warning: not all cycles were trained and measured on the same images."
    assert warning in chain.notes(points)


def test_nothing_judged_is_no_table():
    assert len(tables.shift_table(make_points())) == 1
