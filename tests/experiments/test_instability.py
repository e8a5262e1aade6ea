"""The error on the line between two tickets: of known networks, of chains, and of streamed images."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from etils import epath
from fakes import REPOSITORY, random_variables, script_module

import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources import digits
from giung2_ext.experiments import evaluate, flags, instability, judging, setup, single
from giung2_ext.experiments.config import default_config
from giung2_ext.experiments.instability import Pair, analyse
from giung2_ext.storage import tickets
from giung2_ext.storage.tickets import read_ticket

SMALL = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke", "--optim_ni=60", "--mesh=data:1",
    "--config.evaluation.every=60", "--config.placement.log_every=60", "--config.model.hidden=12,8",
    "--optim_lr=0.01", "--periodic_ckpt=true", "--config.tickets.every=60",
)  # fmt: skip
WHERE = default_config().placement
COUNTED = ("format", "kept", "prunable", "parameters", "mask_digest", "layers", "digest")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A chain of two cycles, each also under another order; the runs share their compiled programs."""
    base, together = tmp_path_factory.mktemp("trained"), setup.Setups()

    def run(save, *arguments):
        config, _ = flags.parse([*map(str, (*SMALL, *arguments))], {"save": None}, "")
        single.train_one(config, str(save))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "Setups", lambda: together)
        run(base, "--seed=1")
        start = f"--matching_ckpt={base / 'iter_000000.ckpt'}"
        pruned = (f"--previous_ckpt={base / 'last.ckpt'}", "--pruning_ratio=0.5")
        for place, seed in ((base, 1), (base / "sibling", 2)):
            run(place / "000", start, f"--seed={seed}")
            run(place / "001", start, *pruned, f"--seed={seed}")
    return base


@pytest.fixture
def chain(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "chain", symlinks=True)


def of_chain(folder, **options):
    folder = epath.Path(folder)
    options = {"points": 3} | options
    return analyse(instability.pairs_of(folder), WHERE, folder / "instability.json", **options)


def of_two(a, b, **options):
    report = analyse([Pair(None, None, str(a), str(b))], WHERE, **options)
    return report["rows"][0]


def changed(folder, ckpt, params, **lineage):
    """A ticket like `ckpt` with other weights."""
    old = read_ticket(ckpt)
    lineage = {name: value for name, value in old.meta.items() if name not in COUNTED} | lineage
    return tickets.write_ticket(epath.Path(folder), params, old.masks, old.statistics, lineage)[0]


def made(folder, seed, num_classes, image_shape, data, **model):
    """The name of a ticket of a `convnet` whose every number is drawn, statistics too."""
    network = discovery.build(giung2_ext.models, "model", "convnet", num_classes=num_classes, **model)
    drawn = random_variables(network, image_shape, seed)
    channels = image_shape[-1]
    statistics = {
        "batch_stats": drawn["batch_stats"],
        "image_stats": {"m": np.full(channels, 0.5, "f4"), "s": np.full(channels, 0.25, "f4")},
    }
    model = {"name": "convnet"} | model
    lineage = dict(model=model, data=data, num_classes=num_classes, image_shape=list(image_shape), step=0)
    masks = masking.dense(drawn["params"], "kernels")
    return str(tickets.write_ticket(epath.Path(folder), drawn["params"], masks, statistics, lineage)[0])


def reversed_units(params):
    """The same function with the first layer's units in the opposite order."""
    first, second = params["Dense_0"], params["Dense_1"]
    moved = {
        "Dense_0": {"kernel": first["kernel"][:, ::-1], "bias": first["bias"][::-1]},
        "Dense_1": {"kernel": second["kernel"][::-1], "bias": second["bias"]},
    }
    return params | moved


def lenet(params, split):
    """Fraction of wrong answers and mean cross-entropy, in plain NumPy."""
    x = split.images.reshape(len(split), -1) / 16
    for name in ("Dense_0", "Dense_1", "cls"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == "cls" else np.maximum(x, 0)
    logp = x - np.log(np.exp(x).sum(1, keepdims=True))
    return (x.argmax(1) != split.labels).mean(), -logp[np.arange(len(x)), split.labels].mean()


@pytest.mark.parametrize("other", ["sibling", "permuted"])
def test_error_and_loss_on_a_line_are_those_of_the_interpolated_networks(other, trained, tmp_path, capsys):
    a, b = trained / "000/last.ckpt", trained / "sibling/000/last.ckpt"
    mine = read_ticket(a).params
    if other == "permuted":  # the same function at both ends: what lies between is a barrier
        b = changed(tmp_path, a, reversed_units(mine))
    theirs = read_ticket(b).params
    row = of_two(a, b, points=5)
    expected = []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        between = jax.tree.map(lambda x, y: (1 - alpha) * x.astype(float) + alpha * y, mine, theirs)  # noqa: B023
        expected.append(lenet(between, digits.build().split("test")))
    np.testing.assert_allclose(row["error"], [error for error, _ in expected], atol=1e-12)
    np.testing.assert_allclose(row["loss"], [loss for _, loss in expected], rtol=1e-5)
    if other == "permuted":
        assert row["error"][0] == row["error"][-1] < 0.3
        assert row["instability"] == max(row["error"]) - row["error"][0] > 0.1
        highest = f"highest {100 * row['error'][2]:.2f}% (alpha 0.50)"
        assert highest in capsys.readouterr().out


def test_the_line_from_a_ticket_to_itself_is_flat(trained):
    a = trained / "001/last.ckpt"
    row = of_two(a, a)
    assert len(row["error"]) == 11
    assert len(set(row["error"])) == len(set(row["loss"])) == 1
    assert row["instability"] == 0


def test_a_chain_is_told_pair_by_pair_and_kept(chain, capsys):
    report = of_chain(chain, batch_size=64)
    assert json.loads((chain / "instability.json").read_text()) == report
    assert (report["dataset"], report["split"], report["statistics"]) == ("digits", "test", "none")
    assert report["alphas"] == [0, 0.5, 1]
    assert "397 images" in report["about"]
    said = capsys.readouterr().out.splitlines()
    for cycle, row in enumerate(report["rows"]):
        own = [chain / f"{cycle:03d}/last.ckpt", chain / f"sibling/{cycle:03d}/last.ckpt"]
        metas = [tickets.read_meta(ckpt) for ckpt in own]
        assert (row["trial"], row["cycle"]) == (0, cycle)
        assert [row["a"], row["b"]] == [meta["digest"] for meta in metas]
        assert (row["kept"], row["prunable"]) == (metas[0]["kept"], metas[0]["prunable"])
        for end, ckpt in ((0, own[0]), (-1, own[1])):
            [judged] = evaluate.evaluate(str(ckpt), [], WHERE)
            assert row["error"][end] == pytest.approx(1 - judged["scores"]["all"]["top1"][0], abs=1e-12)
            assert row["loss"][end] == pytest.approx(judged["scores"]["all"]["nll"][0], rel=1e-6)
        assert row["instability"] == max(row["error"]) - (row["error"][0] + row["error"][2]) / 2
        [line] = [line for line in said if line.startswith(f"trial 0, cycle {cycle:03d}: ")]
        assert f"instability {100 * row['instability']:.2f}%" in line
        assert f"{50 if cycle else 100}.00% of weights left" in line
    assert len(report["rows"]) == 2
    assert report["rows"][0]["error"][0] != report["rows"][0]["error"][2]


def test_what_is_kept_is_not_computed_again_and_what_differs_is(chain, capsys):
    file, whole = chain / "instability.json", of_chain(chain)
    marked = json.loads(file.read_text())
    marked["rows"] = [marked["rows"][0] | {"loss": [7.0, 7.0, 7.0]}]  # as after an interruption
    file.write_text(json.dumps(marked))
    assert of_chain(chain)["rows"] == [marked["rows"][0], whole["rows"][1]]
    marked["rows"][0]["b"] = "0" * 64  # of a ticket that is no more
    file.write_text(json.dumps(marked))
    assert of_chain(chain) == whole
    assert "other settings" not in capsys.readouterr().out
    for change in ({"split": "holdout"}, {"points": 2}):
        other = of_chain(chain, **change)
        assert other["rows"][0]["error"] != whole["rows"][0]["error"]
        assert json.loads(file.read_text()) == other
        assert "is of other settings" in capsys.readouterr().out


def test_every_pair_is_written_as_soon_as_it_is_known(chain):
    own = chain / "sibling/001/last.ckpt"
    other = changed(chain / "sibling/001", own, read_ticket(own).params, image_shape=[8, 8, 3])
    tickets.name_ticket(epath.Path(own.parent), own.name, other)
    with pytest.raises(Refusal, match="two tickets of one network"):
        of_chain(chain)
    [row] = json.loads((chain / "instability.json").read_text())["rows"]
    assert row["cycle"] == 0


def test_every_trial_is_looked_at_and_only_what_is_finished(trained, tmp_path):
    for trial in (0, 10, 2):
        shutil.copytree(trained, tmp_path / f"trial_{trial}", symlinks=True)
    (tmp_path / "trial_2/001/result.json").unlink()
    (tmp_path / "trial_10/sibling/000/result.json").unlink()
    pairs = instability.pairs_of(epath.Path(tmp_path))
    assert [(p.trial, p.cycle) for p in pairs] == [(0, 0), (0, 1), (2, 0), (10, 1)]
    assert pairs[-1].a == str(tmp_path / "trial_10/001/last.ckpt")
    assert pairs[-1].b == str(tmp_path / "trial_10/sibling/001/last.ckpt")
    with pytest.raises(Refusal, match="is finished both in the chain and in its arm sibling"):
        instability.pairs_of(epath.Path(tmp_path / "nowhere"))


@pytest.mark.parametrize("batch_size", [40, 396])
def test_every_example_counts_once_whatever_the_batch_size(batch_size, trained):
    pair = trained / "000/last.ckpt", trained / "sibling/000/last.ckpt"
    whole, cut = of_two(*pair, points=3), of_two(*pair, points=3, batch_size=batch_size)
    assert cut["error"] == whole["error"]
    np.testing.assert_allclose(cut["loss"], whole["loss"], rtol=1e-6)


def test_tickets_of_two_networks_are_refused_and_two_masks_are_pointed_out(trained, tmp_path, capsys):
    a, b = trained / "000/last.ckpt", trained / "001/last.ckpt"
    of_two(a, a, points=2)
    assert "warning" not in capsys.readouterr().out
    of_two(a, b, points=2)
    assert "have different masks; the line between them leaves both" in capsys.readouterr().out
    model = {"name": "lenet", "hidden": [13, 8]}
    for change in ({"model": model}, {"num_classes": 11}, {"precision": "bfloat16"}):
        other = changed(tmp_path, a, read_ticket(a).params, **change)
        with pytest.raises(Refusal, match=r"two tickets of one network: .*lenet.* is .*lenet"):
            of_two(a, other)


@pytest.fixture
def normalised(tmp_path):
    """Two tickets with BatchNorm in groups of 60."""
    options = dict(
        num_classes=10, image_shape=(8, 8, 1), data={"name": "digits"}, widths=(4, 6), group_size=60
    )
    return [made(tmp_path, seed, **options) for seed in (1, 2)]


def test_statistics_between_the_ends_are_moving_averages_over_training_images(normalised):
    """Batches of all 1,200 training images in groups of 1,200: whatever their order, the same moments."""
    judge = judging.Judge(normalised[0], 1200, WHERE)
    judge.model = judge.model.clone(group_size=0)
    judge.meta["model"]["group_size"] = 0
    own = judge.meta["data"]
    train = judging.open_dataset(own["name"], own, "timm", None, "train")
    [middle] = instability.line(judge, judge, [0, 0.5, 1])[1:-1]
    batches = list(instability.training_batches(judge, train, 3))
    assert [int(batch["valid"].sum()) for batch in batches] == [1200] * 3
    [(weights, found)] = instability.estimate(judge, [middle], iter(batches))
    jax.tree.map(np.testing.assert_array_equal, weights, judge.ticket.params)

    variables = {"params": judge.ticket.params, "batch_stats": judge.ticket.statistics["batch_stats"]}
    images = train.records.images.astype(np.float32) / 255
    for _ in range(3):
        _, seen = judge.model.apply(variables, (images - 0.5) / 0.25, train=True, mutable=["batch_stats"])
        variables |= seen
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        found["batch_stats"],
        variables["batch_stats"],
    )
    start = judge.ticket.statistics
    moved = jax.tree.map(
        lambda x, y: float(np.abs(x - y).max()), found["batch_stats"], start["batch_stats"]
    )
    assert min(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, found["image_stats"], start["image_stats"])


def test_weights_and_statistics_are_interpolated_in_double_precision(normalised):
    judges = [judging.Judge(ckpt, 64, WHERE) for ckpt in normalised]
    (mine, theirs) = ((judge.ticket.params, judge.ticket.statistics) for judge in judges)
    points = instability.line(*judges, [0, 0.3, 1])
    between = lambda x, y: (0.7 * x.astype("f8") + 0.3 * y.astype("f8")).astype("f4")  # noqa: E731
    exact = jax.tree.map(between, mine, theirs)
    for found, wanted in zip(points, (mine, exact, theirs), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_ends_keep_their_statistics_and_the_report_says_how_the_others_were_made(normalised, capsys):
    rows = {}
    for statistics in (0, 4):
        report = analyse(
            [Pair(None, None, *map(str, normalised))],
            WHERE,
            points=3,
            statistics=statistics,
            batch_size=600,
        )
        rows[statistics] = report["rows"][0]
        assert f"BatchNorm statistics: {report['statistics']}\n" in capsys.readouterr().out
        how = "estimated between the ends on 4 batches of 600 training images"
        assert report["statistics"] == (how if statistics else "interpolated")
    for end in (0, 2):
        [judged] = evaluate.evaluate(str(normalised[end // 2]), [], WHERE)
        for row in rows.values():
            assert row["error"][end] == pytest.approx(1 - judged["scores"]["all"]["top1"][0], abs=1e-12)
            assert row["loss"][end] == pytest.approx(judged["scores"]["all"]["nll"][0], rel=1e-6)
    a, b = (judging.Judge(ckpt, 600, WHERE) for ckpt in normalised)
    [middle] = instability.line(a, b, [0, 0.5, 1])[1:-1]
    dataset, train = (
        judging.open_dataset("digits", a.meta["data"], "", None, s) for s in ("test", "train")
    )
    moved = instability.estimate(a, [middle], instability.training_batches(a, train, 4))
    losses = [found["nll"].mean(dtype="f8") for found in a.answer_as(dataset, [middle, *moved])]
    assert [rows[0]["loss"][1], rows[4]["loss"][1]] == pytest.approx(losses, rel=1e-9)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_batches_are_whole_groups_on_any_number_of_devices(normalised):
    for size, wanted in ((1, 120), (120, 120), (121, 240)):
        assert instability.statistics_batch(judging.Judge(normalised[0], size, WHERE)) == wanted


def test_no_pair_and_no_point_compiles_anything_anew(normalised):
    judge = judging.Judge(normalised[0], 512, WHERE)
    programs = (
        judging._program(judge.model, judge.population, None),
        instability._moving(judge.model, judge.population),
    )
    of_two(*normalised, points=3, statistics=2)
    before = [program._cache_size() for program in programs]
    of_two(*reversed(normalised), points=6, statistics=3)
    assert [program._cache_size() for program in programs] == before
    assert min(before) > 0


def test_streamed_images_are_compared_along_the_line_too(tmp_path):
    tree = script_module("make_imagenet").make(tmp_path / "tree", count=4)
    data = {"name": "imagenet2012", "holdout": 20, "image_size": 16}
    options = dict(num_classes=1000, image_shape=(16, 16, 3), data=data, widths=(4, 6), group_size=16)
    a, b = (made(tmp_path, seed, **options) for seed in (1, 2))
    where = default_config().placement
    where.data_root, where.num_workers = str(tree), 2
    report = analyse([Pair(None, None, a, b)], where, points=3, batch_size=24, statistics=2)
    [row] = report["rows"]
    for end, ckpt in ((0, a), (2, b)):
        [judged] = evaluate.evaluate(ckpt, [], where, batch_size=24)
        assert row["error"][end] == pytest.approx(1 - judged["scores"]["all"]["top1"][0], abs=1e-12)
    assert report["about"].startswith("80 ")
    assert row["loss"][1] not in (row["loss"][0], row["loss"][2])


def test_the_script_prints_a_line_or_a_table(chain, tmp_path, monkeypatch, capsys):
    script = script_module("instability")

    def say(*words):
        monkeypatch.setattr(sys, "argv", ["instability.py", *map(str, words)])
        script.main()
        return capsys.readouterr().out.splitlines()

    said = say(chain, "--points=3")
    assert [line[:18] for line in said[2:4]] == ["trial 0, cycle 000", "trial 0, cycle 001"]
    kept = json.loads((chain / "instability.json").read_text())
    two = (f"--ckpt={chain / '001/last.ckpt'}", f"--against={chain / 'sibling/001/last.ckpt'}")
    said = say(*two, "--points=3", f"--json={tmp_path / 'two.json'}")
    row = json.loads((tmp_path / "two.json").read_text())["rows"][0]
    assert row == kept["rows"][1] | {"trial": None, "cycle": None}
    assert said[-4].split() == ["alpha", "error", "%", "loss"]
    points = zip((0, 0.5, 1), row["error"], row["loss"], strict=True)
    assert said[-3:] == [f"{a:5.2f}  {100 * e:7.2f}  {n:.4f}" for a, e, n in points]
    for words, problem in (
        ((), "usage"),
        (two[:1], "usage"),
        ((chain, *two), "usage"),
        ((chain, "--json=x"), "usage"),
        ((*two, "--points=1"), "--points must be at least 2, got 1"),
        ((*two, "--statistics=-1"), "--statistics must be at least 0"),
    ):
        with pytest.raises(Refusal, match=problem):
            say(*words)
