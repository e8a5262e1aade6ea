"""The doctor finds what was planted, names the place, and has nothing to say of a good chain."""

import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from fakes import REPOSITORY, Stopped, dying_at, script_module

import giung2_ext
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import converting, exporting, importing, single
from giung2_ext.experiments.building import build_method
from giung2_ext.experiments.config import Config, default_config, with_defaults
from giung2_ext.experiments.config import recipe as recipe_of
from giung2_ext.experiments.doctor import counts, examination, state
from giung2_ext.experiments.doctor.findings import Exam
from giung2_ext.storage import paths, records, tickets
from giung2_ext.storage.checkpoints import StateStore
from giung2_ext.training import loop
from giung2_ext.training.state import seed_key

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
QUICK = (
    DIGITS, "--optim_ni=12", "--seed=1", "--config.model.hidden=64,64", "--config.evaluation.every=6",
    "--config.chain.trials=1", "--periodic_ckpt=true", "--config.tickets.every=4", "--save_every=4",
    "--config.placement.log_every=2",
)  # fmt: skip
SOLO = (*QUICK, "--config.chain.arms=", "--config.chain.cycles=3", "--config.optim.ema=0.9")
SOME = "002/iter_000004.ckpt"  # its ticket has no other name
PRUNED = 8192 + 640, int((8192 + 640) * 0.8)  # prunable weights of 64-64-64-10, and what cycle 001 keeps
KEPT = PRUNED[1] * 4 // 5


@pytest.fixture(scope="module")
def good(tmp_path_factory, chain):
    """Cycles 000 to 002 are finished, 003 died after it had saved a state of step 8."""
    folder = tmp_path_factory.mktemp("doctor") / "good"
    loops = iter([loop.run_loop] * 4 + [dying_at(10)])  # the starting point has one too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "run_loop", lambda *args, **options: next(loops)(*args, **options))
        with pytest.raises(Stopped):
            chain(folder, *SOLO)
    return folder


@pytest.fixture
def finished(good, tmp_path):
    """A copy without the cycle that is not finished, to plant faults in."""
    shutil.copytree(good, tmp_path / "c", symlinks=True, ignore=shutil.ignore_patterns("003"))
    return epath.Path(tmp_path / "c")


@pytest.fixture
def stopped(good, tmp_path):
    """A whole copy, with the state of step 8."""
    shutil.copytree(good, tmp_path / "c", symlinks=True)
    return epath.Path(tmp_path / "c")


def faults(folder):
    return [
        (where, text)
        for severity, where, text in examination.examine(folder).findings
        if severity == "fault"
    ]


def assert_only(folder, *expected):
    """These faults and no other, in any order."""
    found = sorted(faults(folder))
    assert [where for where, _ in found] == sorted(where for where, _ in expected), found
    for (_, text), (_, words) in zip(found, sorted(expected), strict=True):
        assert words in text


def rewrite(run, edit, **lineage):
    """Edits every ticket of a run, or that of a name, as if it had been written so: with new digests."""
    folder, name = (run.parent, run.name) if run.name.endswith(".ckpt") else (run, None)
    moved = {}
    for link in sorted(folder.glob("*.ckpt")):
        if name not in (None, link.name):
            continue
        old = paths.resolve(link)
        if old not in moved:
            ticket = tickets.read_ticket(old)
            edit(ticket)
            counted = ("digest", "format", "kept", "prunable", "parameters", "mask_digest", "layers")
            meta = {key: value for key, value in ticket.meta.items() if key not in counted}
            path, written = tickets.write_ticket(folder, *ticket[:3], meta | lineage)
            moved[old] = path, ticket.digest, written
        tickets.name_ticket(folder, link.name, moved[old][0])
    tickets.drop_unnamed(folder)
    redirect(folder, {before: after for _, before, after in moved.values()})


def redirect(folder, metas):
    """Lets result.json speak of the new tickets, and the recipe of their parents."""
    result = records.read_json(folder / records.RESULT) or {"tickets": {}}
    for which, digest in result["tickets"].items():
        if digest in metas:
            result["tickets"][which] = metas[digest]["digest"]
            result |= {key: metas[digest][key] for key in ("kept", "layers", "parents")}
    if result["tickets"]:
        (folder / records.RESULT).write_text(json.dumps(result))
    config = json.loads((folder / records.CONFIG).read_text())
    for kind, digest in next(iter(metas.values()))["parents"].items():
        config["recipe"]["start"][f"{kind}_ckpt"] = digest
    (folder / records.CONFIG).write_text(json.dumps(config))


def first_place(mask, kept):
    return tuple(np.argwhere(mask == kept)[0])


def kernel(ticket, name="Dense_0"):
    return ticket.params[name]["kernel"], ticket.masks[name]["kernel"]


def test_nothing_is_wrong_with_a_good_chain(good, script):
    done = script("doctor", good)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    *lines, summary = done.stdout.splitlines()
    assert not [line for line in lines if not line.startswith("note: ")]
    assert "note: 003: is not finished" in done.stdout
    exam = examination.examine(epath.Path(good))
    assert summary.startswith(f"{good}: looked at 5 runs, {exam.looked['ticket']} tickets, ")
    assert f" 8 parents, 4 rewindings and 1 state: no fault, {len(lines)} note" in summary
    assert exam.looked["ticket"] == len({os.path.realpath(name) for name in good.rglob("*.ckpt")})
    assert exam.looked["parent"] == 8


def test_a_ticket_and_a_run_can_be_looked_at_alone(good):
    ticket = examination.examine(epath.Path(good) / SOME)
    assert (ticket.faults, ticket.looked["ticket"]) == ([], 1)
    run = examination.examine(epath.Path(good) / "003")
    assert (run.faults, run.looked["run"], run.looked["state"]) == ([], 1, 1)


def test_a_chain_is_the_same_from_within_and_under_any_name(good, tmp_path, monkeypatch):
    shutil.copytree(good, tmp_path / "2024", symlinks=True)
    monkeypatch.chdir(tmp_path / "2024")
    exam = examination.examine(epath.Path("."))
    assert (exam.faults, exam.looked["parent"]) == ([], 8)


def test_nothing_is_written(good):
    def files():
        return {path: os.lstat(path).st_mtime_ns for path in good.rglob("*")}

    before = files()
    examination.examine(epath.Path(good))
    assert files() == before


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_ticket_that_is_one_file_is_a_ticket(ending, good, tmp_path):
    ticket = tickets.read_ticket(good / SOME)
    exporting.export(ticket, epath.Path(tmp_path / f"a{ending}"))
    exam = examination.examine(epath.Path(tmp_path / f"a{ending}"))
    assert (exam.findings, exam.looked["ticket"]) == ([], 1)
    content = (tmp_path / f"a{ending}").read_bytes()
    (tmp_path / f"a{ending}").write_bytes(content[:-40])
    assert "cannot be read as" in faults(epath.Path(tmp_path / f"a{ending}"))[0][1]


def test_the_map_of_a_chain_is_looked_at_cycle_by_cycle(good, tmp_path):
    shutil.copytree(good, tmp_path / "c", symlinks=True, ignore=shutil.ignore_patterns("003"))
    converting.convert(str(tmp_path / "c"), str(tmp_path / "map.npz"), importing.Wishes())
    exam = examination.examine(epath.Path(tmp_path / "map.npz"))
    assert (exam.findings, exam.looked["mask"]) == ([], 3)


def test_an_accuracy_that_is_not_its_count(finished):
    path = finished / "002/result.json"
    result = json.loads(path.read_text())
    own = result["scores"]["last"]["test"]
    own["accuracy"] = 0.99
    path.write_text(json.dumps(result))
    assert_only(
        finished, ("002/result.json", f"says accuracy 0.9900 of last on test, where {own['correct']:,}")
    )


def test_a_ticket_that_no_run_has_trained_lacks_no_recipe(good, tmp_path):
    ticket = giung2_ext.load_ticket(good / SOME)
    giung2_ext.save_ticket(tmp_path / "mine", ticket.params, ticket.masks, like=ticket)
    assert examination.examine(epath.Path(tmp_path / "mine")).findings == []


def test_a_dense_cycle_may_name_its_starting_point_once(finished):
    matching = tickets.read_ticket(finished / "000/last.ckpt").meta["parents"]["matching"]
    rewrite(finished / "000", lambda ticket: None, parents={"matching": matching})
    new = {name: tickets.read_ticket(finished / "000" / name).digest for name in ("best_acc.ckpt",)}
    config = json.loads((finished / "000" / records.CONFIG).read_text())
    config["recipe"]["start"]["previous_ckpt"] = None
    (finished / "000" / records.CONFIG).write_text(json.dumps(config))
    parents = {"matching": matching, "previous": new["best_acc.ckpt"]}
    rewrite(finished / "001", lambda ticket: None, parents=parents)
    best = tickets.read_ticket(finished / "001/best_acc.ckpt").digest
    rewrite(finished / "002", lambda ticket: None, parents=parents | {"previous": best})
    assert_only(finished)


def test_a_parent_that_imp_takes_no_cycle_from_is_worth_a_note(finished):
    parents = tickets.read_ticket(finished / "002/last.ckpt").meta["parents"]
    other = tickets.read_ticket(finished / "001/iter_000004.ckpt").digest
    rewrite(finished / "002", lambda ticket: None, parents=parents | {"previous": other})
    exam = examination.examine(finished)
    assert exam.faults == []
    [note] = [f for f in exam.findings if "previous parent" in f.text]
    assert note.where == "002"
    assert "is 001/iter_000004.ckpt, not the best or last ticket of 001" in note.text


def test_parents_that_the_recipe_names_and_the_tickets_do_not(finished):
    rewrite(finished / "002", lambda ticket: None, parents={"none": ""})
    assert_only(
        finished,
        ("002", "holds a ticket of another run than config.json tells of: start.matching_ckpt is None"),
        ("002", "its matching parent is not recorded"),
        ("002", "its previous parent is not recorded"),
        ("c", "its cycles start from different weights"),
    )


def test_statistics_that_the_network_has_not(finished):
    rewrite(finished / SOME, lambda ticket: ticket.statistics.pop("image_stats"))
    assert_only(finished, (SOME, "'statistics/image_stats/m' is missing"))


def test_a_state_that_is_left_of_a_finished_run_is_a_note(stopped):
    (stopped / "003/states").rename(stopped / "002/states")
    (stopped / "003").rmtree()
    exam = examination.examine(stopped)
    assert exam.faults == []
    assert [f.where for f in exam.findings if "left of a run" in f.text] == ["002/states"]


def test_a_cycle_without_its_first_ticket_is_said_not_to_be_seen_rewound(finished):
    os.unlink(finished / "001/iter_000000.ckpt")
    exam = examination.examine(finished)
    assert (exam.faults, exam.looked["rewinding"]) == ([], 2)
    assert ["cannot be seen in 001: no" in f.text for f in exam.findings if "rewound" in f.text] == [True]


def test_a_pattern_that_is_broken_in_one_group():
    mask = np.tile([[True], [True], [False], [False]], (4, 3))
    exam = Exam(epath.Path("."))
    counts.check_structure(exam, "a", "2:4", {"cls/kernel": mask})
    assert exam.faults == []
    mask[0, 0], mask[4, 0] = False, True
    mask[6, 0] = True
    counts.check_structure(exam, "a", "2:4", {"cls/kernel": mask})
    assert "is not 2:4 everywhere" in exam.faults[0].text
    assert "2 of cls/kernel" in exam.faults[0].text


def test_what_is_none_of_the_three_is_refused(tmp_path):
    with pytest.raises(Refusal, match="is no ticket"):
        examination.report(tmp_path)


def revive(ticket):
    weight, mask = kernel(ticket)
    weight[first_place(mask, False)] = 0.5


def break_weight(ticket):
    weight, mask = kernel(ticket)
    weight[first_place(mask, True)] = np.nan


def test_a_revived_weight(finished):
    rewrite(finished / SOME, revive)
    assert_only(
        finished, (SOME, "1 weight outside the mask should be exactly 0 and are not (1 of Dense_0/kernel)")
    )


def test_a_weight_that_is_not_a_number(finished):
    rewrite(finished / SOME, break_weight)
    assert_only(finished, (SOME, "holds NaN or infinity (1 in params/Dense_0/kernel)"))


def test_a_mask_that_is_not_nested(finished):
    point = tickets.read_ticket(finished / "iter_000000.ckpt")
    outer = tickets.read_ticket(finished / "001/last.ckpt")

    def edit(ticket):
        (weight, mask), back = kernel(ticket), first_place(kernel(outer)[1], False)
        gone = first_place(mask, True)
        weight[gone], weight[back] = 0, kernel(point)[0][back]
        mask[gone], mask[back] = False, True

    rewrite(finished / "002", edit)
    assert_only(finished, ("002", "keeps weights that 001/best_acc.ckpt has pruned (1 of Dense_0/kernel)"))


def test_two_layers_that_were_swapped(finished):
    def edit(ticket):
        for tree in ticket[:2]:
            one, two = tree["Dense_0"], tree["Dense_1"]
            one["kernel"], two["kernel"] = two["kernel"], one["kernel"]

    rewrite(finished / "002", edit)
    assert_only(
        finished,
        ("002", "keeps weights that 001/best_acc.ckpt has pruned"),
        ("002/iter_000000.ckpt", "should be best_acc.ckpt under its mask, bit for bit"),
    )


def test_a_wrong_parent(finished):
    names = {n: tickets.read_ticket(finished / n).digest for n in ("000/best_acc.ckpt", "best_acc.ckpt")}
    parents = {"matching": names["best_acc.ckpt"], "previous": names["000/best_acc.ckpt"]}
    rewrite(finished / "002", lambda ticket: None, parents=parents)
    assert_only(finished, ("002", "its previous parent is 000/"))


def test_a_missing_parent(finished):
    digest = tickets.read_ticket(finished / "001/best_acc.ckpt").digest
    (finished / "001").rmtree()
    assert_only(
        finished, ("002", f"its previous parent {digest[:16]} is not here, expected the best or last")
    )


def test_cycles_that_start_from_different_weights(finished):
    point = tickets.read_ticket(finished / "iter_000000.ckpt")
    other, meta = tickets.write_ticket(finished, *point[:3], {**lineage_of(point), "step": 1})
    tickets.name_ticket(finished, "iter_000001.ckpt", other)
    parents = tickets.read_ticket(finished / "002/last.ckpt").meta["parents"]
    rewrite(finished / "002", lambda ticket: None, parents=parents | {"matching": meta["digest"]})
    assert_only(finished, ("c", "its cycles start from different weights (000/best_acc.ckpt from "))


def lineage_of(ticket):
    counted = ("digest", "kept", "prunable", "parameters", "mask_digest", "layers")
    return {key: value for key, value in ticket.meta.items() if key not in counted}


def test_a_wrong_count_in_ticket_json(finished):
    old = paths.resolve(finished / SOME)
    meta = json.loads((old / tickets.META).read_text())
    meta["kept"] += 1
    edited = json.dumps(meta)
    with np.load(old / tickets.ARRAYS) as stored:
        arrays = {key: stored[key] for key in stored.files}
    del meta["digest"]
    meta["digest"] = tickets._digest(arrays, meta)
    new = tickets.place_of(finished / "002", meta["digest"])
    shutil.copytree(old, new)
    (new / tickets.META).write_text(json.dumps(meta))
    tickets.name_ticket(finished / "002", "iter_000004.ckpt", new)
    assert_only(finished, (SOME, f"does not say what the arrays hold: kept is {KEPT + 1}, counted {KEPT}"))
    (old / tickets.META).write_text(edited)  # and by one who forgets the digest
    tickets.name_ticket(finished / "002", "iter_000004.ckpt", old)
    assert_only(finished, (SOME, "the ticket is damaged: its content does not match its digest"))


def test_a_flipped_byte(finished, script):
    file = paths.resolve(finished / SOME) / tickets.ARRAYS
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert_only(finished, (SOME, "the ticket is damaged"))
    done = script("doctor", finished)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.startswith(f"fault: {SOME}: the ticket is damaged")
    assert ": 1 fault, " in done.stdout.splitlines()[-1]


def test_a_name_that_leads_nowhere(finished):
    paths.resolve(finished / SOME).rmtree()
    assert_only(finished, (SOME, "names no ticket: it points at tickets/"))
    assert [where for where, _ in faults(finished / SOME)] == ["iter_000004.ckpt"]


def test_a_name_that_is_missing(finished):
    os.unlink(finished / "002/last.ckpt")
    assert_only(finished, ("002/last.ckpt", "is missing, and the run is finished"))


def test_a_layer_that_was_emptied(finished):
    left = KEPT - int(tickets.read_ticket(finished / "002/last.ckpt").masks["cls"]["kernel"].sum())

    def edit(ticket):
        for values in kernel(ticket, "cls"):
            values[:] = 0

    rewrite(finished / "002", edit)
    assert_only(
        finished,
        ("002/best_acc.ckpt", "the mask keeps no weight of cls/kernel (640)"),
        (
            "002",
            f"keeps {left:,} weights, expected {KEPT:,} (pruning_ratio=0.8, rounding=floor, of the 7,065",
        ),
    )


def drop_one(ticket):
    weight, mask = kernel(ticket)
    place = first_place(mask, True)
    weight[place], mask[place] = 0, False


def test_another_number_of_weights_than_the_ratio_keeps(finished):
    rewrite(finished / "002", drop_one)
    assert_only(finished, ("002", f"keeps {KEPT - 1:,} weights, expected {KEPT:,}"))


def test_a_result_of_another_ticket(finished):
    shutil.copy(finished / "001/result.json", finished / "002/result.json")
    assert_only(
        finished, ("002/result.json", "is the result of other tickets than those beside it: its best")
    )


def test_a_ticket_of_another_cycle_under_a_name(finished):
    shutil.copytree(
        old := paths.resolve(finished / "001/iter_000004.ckpt"), finished / "002/tickets" / old.name
    )
    tickets.name_ticket(finished / "002", "iter_000004.ckpt", finished / "002/tickets" / old.name)
    assert_only(
        finished,
        (SOME, "its previous parent is 000/"),
        (SOME, "holds a ticket of another run than config.json tells of: start.previous_ckpt is "),
        (SOME, f"keeps {PRUNED[1]:,} weights, expected {KEPT:,}"),
        ("002", "trains under one mask, and the tickets have several"),
    )


def test_another_network_within_a_chain(finished):
    rewrite(finished / "002", lambda ticket: None, image_shape=[4, 16, 1])  # of as many pixels
    assert_only(
        finished,
        (
            "002/best_acc.ckpt",
            "is of another network than best_acc.ckpt: image_shape: [8, 8, 1] -> [4, 16, 1]",
        ),
    )


def resave(folder, change, to=None, **more):
    """Lets the newest state of a run be another, saved as states are; older ones are gone."""
    store = StateStore(folder / paths.STATES, 2)
    step = store.steps()[0]
    notes = store.notes(step)
    _, like = state.abstract_state(with_defaults(notes["identity"][0]), 10, (8, 8, 1))
    changed = change(store.restore(step, like))
    store.clear()
    store = StateStore(to or store.folder, 2)
    store.save(step, changed, notes | more)
    store.close()


def poke(tree, masks, ending):
    """Sets the first pruned place of the leaf of that name to 1."""

    def edit(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(ending):
            return leaf
        mask = np.asarray(masks["Dense_0"]["kernel"])
        return leaf.at[first_place(mask, False)].set(1.0)

    return jax.tree_util.tree_map_with_path(edit, tree)


def test_a_stale_momentum(stopped):
    resave(
        stopped / "003",
        lambda s: s.replace(optimizer=poke(s.optimizer, s.method, "mu/Dense_0/kernel")),
    )
    assert_only(
        stopped, ("003/states/8", "optimizer slots outside the mask should be exactly 0 and are not (1 of ")
    )


def test_a_stale_moving_average(stopped):
    resave(stopped / "003", lambda s: s.replace(average=poke(s.average, s.method, "Dense_0/kernel")))
    assert_only(stopped, ("003/states/8", "moving averages outside the mask should be exactly 0"))


def test_a_stale_weight_in_a_state(stopped):
    resave(stopped / "003", lambda s: s.replace(trainable=poke(s.trainable, s.method, "Dense_0/kernel")))
    assert_only(stopped, ("003/states/8", "weights outside the mask should be exactly 0"))


def test_a_state_with_another_mask(stopped):
    def change(s):
        mask = s.method["Dense_0"]["kernel"]
        other = mask.at[first_place(np.asarray(mask), False)].set(True)
        return s.replace(method={**s.method, "Dense_0": {**s.method["Dense_0"], "kernel": other}})

    resave(stopped / "003", change)
    assert_only(
        stopped,
        ("003/states/8", "has another mask than 003/best_acc.ckpt"),
        ("003/states/8", "keeps 4,522 weights, expected 4,521"),
    )


def test_a_damaged_state_and_the_older_one_behind_it(stopped):
    files = [p for p in pathlib.Path(stopped / "003/states/8").rglob("*") if p.is_file()]
    max(files, key=lambda p: p.stat().st_size).write_bytes(b"")
    [(where, text)] = faults(stopped)
    assert (where, "the run goes on from an older state" in text) == ("003/states/8", True)
    assert examination.examine(stopped).looked["state"] == 2


def test_a_state_whose_best_ticket_is_gone(stopped):
    best = paths.resolve(stopped / "003/best_acc.ckpt")
    os.unlink(stopped / "003/best_acc.ckpt")
    best.rmtree()
    assert_only(
        stopped, ("003/states/8", f"names {best.name} as the best ticket so far, which is not in 003")
    )


def test_a_state_of_several_members_is_looked_at_member_by_member(stopped):
    def stack(change):
        to = stopped / paths.CHAIN_STATES / "003"
        resave(stopped / "003", lambda s: jax.tree.map(lambda x: x[None], change(s)), to, stacked=True)

    stack(lambda s: s.replace(optimizer=poke(s.optimizer, s.method, "nu/Dense_0/kernel")))
    assert_only(
        stopped, ("chain_states/003/8 (003)", "optimizer slots outside the mask should be exactly 0")
    )


def test_a_state_whose_run_is_gone(stopped):
    resave(
        stopped / "003",
        lambda s: jax.tree.map(lambda x: x[None], s),
        stopped / "chain_states/003",
        stacked=True,
    )
    (stopped / "003").rmtree()
    assert_only(stopped, ("chain_states/003/8", "its member 0 is of a run that is not here (seed 1)"))


@pytest.fixture
def moving(config_of, tmp_path):
    """A run of gradual pruning as it lies there after step 8, when it has come to its density."""
    flags = (f"--config={REPOSITORY / 'configs/dynamic/digits.py'}:smoke", "--method=gradual", "--seed=0")
    flags = (*flags, "--density=0.25", "--config.method.every=3", "--config.method.end=6", "--optim_ni=12")
    config = config_of(*flags, "--config.model.hidden=16,16", "--config.optim.ema=0.9")
    config.precision, config.feed.augment, run = "float32", "none", epath.Path(tmp_path / "run")
    written = recipe_of(config)
    run.mkdir()
    records.record_session(run, written, {})
    _, like = state.abstract_state(written, 10, (8, 8, 1))
    draw = np.random.default_rng(0)
    full = jax.tree.map(lambda x: draw.random(x.shape, np.float32), like.trainable)
    masks = jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape) % 4 == 0, like.method.masks)
    sparse = jax.device_get(masking.apply(masks, full))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like.replace(key=None))
    ever = jax.tree.map(lambda x: np.ones(x.shape, bool), like.ever)
    now = zeros.replace(
        key=seed_key(0),
        trainable=sparse,
        method=zeros.method._replace(masks=masks),
        ever=ever,
        average=(full, zeros.average[1]),
    )
    own = {name: written[name] for name in ("seed", "model", "data", "method", "masks")}
    lineage = own | {"step": 8, "parents": {}, "num_classes": 10, "image_shape": [8, 8, 1]}
    ticket, meta = tickets.write_ticket(
        run, sparse, masks, zeros.statistics, lineage | {"prunable_rule": "kernels"}
    )
    tickets.name_ticket(run, "best_acc.ckpt", ticket)
    store = StateStore(run / paths.STATES, 1)
    store.save(8, jax.device_put(now), {"identity": [written], "best": [{"digest": meta["digest"]}]})
    store.close()
    return run


def test_masks_that_move_have_the_density_of_their_recipe_in_tickets_and_states(moving):
    """Of the moving average nothing is said: it forgets by and by what was pruned."""
    assert_only(moving)
    assert examination.examine(moving).looked["state"] == 1
    rewrite(moving / "best_acc.ckpt", drop_one)
    assert_only(
        moving,
        ("run", "keeps 359 weights, expected 360 (method.density=0.25 of 1,440)"),
        ("states/8", "has another mask than best_acc.ckpt (step 8)"),
        ("states/8", "names "),
    )


@pytest.mark.parametrize(
    ("method", "options", "step", "kept"),
    [
        ("gradual", {}, 76, 2510),
        ("gradual", {}, 75, None),  # the last update is still to come
        ("ste", {"structure": "1:4", "density": 0.25}, 100, 12550),
        ("rpg", {}, 100, 2510),
        ("rpg", {"off_by_one": True}, 100, 2511),
    ],
)
def test_what_methods_come_to_is_known_when_they_have_come_to_it(method, options, step, kept):
    given = {"name": method, "density": 0.05, "every": 10} | options
    given |= {"ramp": 0.5, "stop": 0.75} if method == "rpg" else {"end": 75}
    recipe = default_config().to_dict() | {"method": given}
    recipe["optim"] |= {"ni": 100}
    complete = {"structure": "none", "off_by_one": False} | given
    found = counts.expected(
        recipe | {"method": complete},
        build_method(Config(recipe)),
        step,
        {"Dense_0/kernel": (64, 300), "Dense_1/kernel": (300, 100), "cls/kernel": (100, 10)},
        None,
    )
    assert (found.counts if found else None) == kept


def test_hosts_that_read_different_files(good, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    path = str(REPOSITORY / "scripts/doctor.py")
    for host in "01":
        shutil.copytree(good / "002", tmp_path / f"host{host}/run", symlinks=True)
    os.unlink(tmp_path / "host1/run/iter_000004.ckpt")
    code = (
        "import os, runpy, sys; os.chdir(sys.argv[1] + os.environ['JAX_PROCESS_ID']); "
        f"sys.argv[:2] = [{path!r}]; runpy.run_path({path!r}, run_name='__main__')"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "host"), "run"]
    job = script_module("torture").Job(words, 2, 1, tmp_path / "job")
    assert job.ends_within(120)
    assert [process.returncode for process in job.running] == [1, 1], job.said() + job.said(1)
    assert "fault: run: the processes of this job differ in what they read here" in job.said()
    assert "1 fault, " in job.said()
    assert "process 1: iter_000004.ckpt is not there here and " in job.said(1)


def test_a_file_of_another_suite_that_cannot_be_taken_for_anything_need_not_be_damaged(tmp_path):
    """It says what is missing, and not to throw the file away."""
    place = epath.Path(tmp_path) / "net.safetensors"
    place.write_bytes(safetensors.numpy.save({"unheard.of.weight": np.ones((3, 3), np.float32)}))
    [found] = examination.examine(place).findings
    assert found.text.startswith("it cannot be read as a ticket: ")
    assert "no classifier; looked for fc.weight" in found.text
    assert "restore" not in found.text
