"""What a run starts from: fresh or rewound weights, and the mask that a ticket or a criterion gives.

The rules of the original suite: `matching_ckpt` gives the weights, `previous_ckpt` the weights to rank
and the mask to shrink, `pruning_ratio` the fraction of the survivors kept (1 selects nothing, so it
cannot disturb a mask). The rewound weights are those of the rewind point under the new mask, bit for
bit; step, rate schedule and optimizer start afresh, batch statistics too unless told to rewind. Fresh
kernels can be drawn otherwise than the model does it, for methods that never train them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from giung2_ext.core import ablations, allocate, criteria, initial, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.choosing import check_choice, choose
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.setup import Setup
from giung2_ext.storage.tickets import Ticket, read_meta, read_ticket
from giung2_ext.training import state as states
from giung2_ext.training.sharding import Layout
from giung2_ext.training.state import State

Tree = Any

_prune, _prune_legacy = jax.jit(criteria.prune_magnitude), jax.jit(criteria.prune_magnitude_legacy)
_prune_each = jax.jit(criteria.prune_magnitude_each)
_redraw = jax.jit(initial.redraw, static_argnames="how")
_scale_fan = jax.jit(initial.scale_fan, static_argnames="by")
_signs, _shuffle = map(jax.jit, (ablations.signs, ablations.shuffle))


@functools.lru_cache
def _initialiser(model: nn.Module, image_shape: tuple[int, ...], layout: Layout) -> Any:
    """Compiled once for all members and cycles of a network; what it makes is born where it belongs."""
    make = lambda seed: states.init_variables(model, states.seed_key(seed), image_shape)  # noqa: E731
    return jax.jit(lambda seed: layout.owned(make(seed)))


def check_parents(config: Config) -> None:
    """That the tickets that it starts from are there."""
    for ticket in filter(None, (config.start.matching_ckpt, config.start.previous_ckpt)):
        read_meta(ticket)


def check_start(config: Config) -> None:
    """The combinations of start and masks that mean something; called before anything is built."""
    start = config.start
    allocate.check_fraction(start.pruning_ratio, "pruning_ratio")
    if start.previous_ckpt and not start.matching_ckpt:
        raise Refusal("--previous_ckpt without --matching_ckpt: name the checkpoint to rewind to")
    prunes = [f"--pruning_ratio={start.pruning_ratio:g}"] if start.pruning_ratio < 1 else []
    if start.layer_ratios:
        allocate.read_ratios(start.layer_ratios, "config.start.layer_ratios")
        prunes.append(f"config.start.layer_ratios={start.layer_ratios}")
    if prunes and not start.previous_ckpt:
        raise Refusal(f"{prunes[0]} without --previous_ckpt: name the checkpoint whose weights are ranked")
    if len(prunes) > 1:
        raise Refusal(f"{' and '.join(prunes)} both say how much is pruned: leave one of them out")
    for field, usual in (("weights", "model"), ("scale_fan", "none")):
        if start[field] != usual and start.matching_ckpt:
            raise Refusal(
                f"config.start.{field}={start[field]} draws weights, and --matching_ckpt gives them: "
                f"leave one of them out (config.start.{field}={usual})"
            )
    if start.rounds < 1:
        raise Refusal(f"config.start.rounds must be at least 1, got {start.rounds}")
    for field, known in (
        ("rounding", allocate.ROUNDINGS),
        ("ablation", ablations.ABLATIONS),
        ("weights", ("model", *initial.INITIALS)),
        ("scale_fan", ("none", *initial.SCALES)),
    ):
        if start[field] not in known:
            raise unknown(f"config.start.{field}", start[field], known)
    if start.legacy_scores and (start.layer_ratios or start.rounding != "floor" or start.rounds > 1):
        raise Refusal("config.start.legacy_scores is the original suite's global rule, once a cycle")
    if config.masks.criterion != "none" and prunes:
        raise Refusal(f"config.masks.criterion and {prunes[0]} both choose the mask")
    check_choice(config)
    if start.batch_stats not in ("reset", "rewind"):
        raise unknown("value of config.start.batch_stats", start.batch_stats, ["reset", "rewind"])


def _read_fitting(path: str, params: Tree, masks: Tree) -> Ticket:
    ticket = read_ticket(path)
    problem = trees.first_mismatch(params, ticket.params)
    if problem:
        raise Refusal(f"{path} is of another architecture: {problem}")
    stored, wanted = trees.named_leaves(ticket.masks), trees.named_leaves(masks)
    for name, leaf in wanted.items():
        if (leaf is None) != (stored[name] is None):
            what = "is" if leaf is not None else "is not"
            raise Refusal(
                f"{path} was made with another config.masks.prunable "
                f"({ticket.meta['prunable_rule']}): here {name!r} {what} prunable; give that rule, "
                f"--config.masks.prunable={ticket.meta['prunable_rule']}"
            )
    return ticket


def _shrink(config: Config, put: Callable[[Tree], Tree], params: Tree, masks: Tree) -> Tree:
    """The survivors of one cycle: the largest of the previous ticket's weights, nested in its mask."""
    start, how = config.start, (config.start.rounding, config.start.rounds)
    if start.layer_ratios:
        alive = jax.device_get(masking.counts(masks))
        counts = allocate.pruned_counts(masks, alive, start.layer_ratios, *how)
        return _prune_each(put(params), put(masks), counts)
    ratio, alive = start.pruning_ratio, int(masking.kept(masks))
    if start.legacy_scores:
        free = sum(leaf.size for leaf in jax.tree.leaves(params)) - masking.size(masks)
        return _prune_legacy(put(params), put(masks), allocate.keep_count_legacy(ratio, alive, free))
    return _prune(put(params), put(masks), allocate.keep_count(ratio, alive, "pruning_ratio", *how))


def _ablate(config: Config, put: Callable[[Tree], Tree], params: Tree, masks: Tree) -> tuple[Tree, Tree]:
    """What is left of the ticket where a part of it is to be taken away."""
    if config.start.ablation == "signs":
        return _signs(put(params), put(masks)), masks
    if config.start.ablation == "shuffle":
        key = jax.random.fold_in(states.seed_key(config.seed), states.CRITERION)
        return params, _shuffle(key, put(masks))
    return params, masks


def _draw(config: Config, put: Callable[[Tree], Tree], params: Tree, masks: Tree) -> Tree:
    """Prunable kernels as config.start.weights draws them."""
    if config.start.weights == "model":
        return params
    key = jax.random.fold_in(states.seed_key(config.seed), states.WEIGHTS)
    return _redraw(key, put(params), put(masks), how=config.start.weights)


@jax.jit
def _alive(masks: Tree, params: Tree) -> tuple[Tree, Tree]:
    return masking.counts(masks), jax.tree.map(jnp.any, params)


def _check_frozen(config: Config, state: State, params: Tree, masks: Tree) -> None:
    """Where scores are trained, weights and layers' counts stay as they begin: nothing may be dead."""
    counts, nonzero = map(trees.named_leaves, jax.device_get(_alive(masks, params)))
    trained, name = trees.named_leaves(state.trainable), config.method.name
    for leaf, count in counts.items():
        if count == 0:
            rule = config.masks
            what = "the mask to start from"
            if rule.criterion != "none":
                what = f"config.masks.density={rule.density:g} ({rule.allocation})"
            raise Refusal(
                f"{what} keeps no weight of {leaf}, and {name} leaves every layer its count: keep more"
                + ", or use config.masks.allocation=uniform or erk" * (rule.allocation == "global")
            )
        fixed = count is not None or trained.get(leaf) is None
        if leaf.endswith("kernel") and fixed and not nonzero[leaf]:
            raise Refusal(
                f"{leaf} is all 0 and {name} never trains it: start from a checkpoint (--matching_ckpt), "
                "let config.start.weights draw it (config.masks.prunable=kernels), or choose another "
                "config.model.head"
            )


def start_state(config: Config, setup: Setup) -> tuple[State, dict[str, Any]]:
    """One member's state at step 0, and the lineage that its tickets carry."""
    image_shape = setup.source.image_shape
    seed, put = np.uint32(config.seed), setup.population.put
    params, statistics = _initialiser(setup.model, image_shape, setup.population.layout)(seed)
    mean, std = (np.asarray(v, np.float32) for v in (setup.source.mean, setup.source.std))
    statistics = statistics | {"image_stats": {"m": mean, "s": std}}
    masks = masking.dense(params, config.masks.prunable)
    if not trees.present(masks):
        raise Refusal(
            f"config.masks.prunable={config.masks.prunable!r} finds nothing to prune in this "
            f"network; its leaves are: {', '.join(trees.named_leaves(params))}"
        )
    start, parents = config.start, {}
    if config.optim.ema is not None and not setup.method.averages:
        raise Refusal(
            f"config.optim.ema averages weights, and {config.method.name} trains scores, or sets "
            "weights back"
        )
    if setup.method.pretrained and not start.matching_ckpt:
        raise Refusal(
            f"{config.method.name} never trains a weight: give the trained ones with --matching_ckpt=PATH"
        )
    if start.matching_ckpt:
        matching = _read_fitting(start.matching_ckpt, params, masks)
        parents["matching"] = matching.digest
        previous = matching
        if start.previous_ckpt:
            previous = _read_fitting(start.previous_ckpt, params, masks)
            parents["previous"] = previous.digest
        params, masks = matching.params, previous.masks
        if start.pruning_ratio < 1 or start.layer_ratios:
            masks = _shrink(config, put, previous.params, masks)
        if start.batch_stats == "rewind":
            statistics = statistics | matching.statistics
        statistics = statistics | {"image_stats": matching.statistics["image_stats"]}
    params = _draw(config, put, params, masks)
    params, masks = _ablate(config, put, params, choose(config, setup, params, statistics, masks))
    if start.scale_fan != "none":
        params = _scale_fan(put(params), put(masks), by=start.scale_fan)
    if setup.method.given_density and int(masking.kept(masks)) == masking.size(masks):
        raise Refusal(
            f"{config.method.name} keeps the density that it starts with, and the starting mask is dense: "
            "choose one, such as --config.masks.criterion=random --config.masks.allocation=erk "
            "--config.masks.density=0.1"
        )
    state = setup.begin(seed, *map(put, (params, masks, statistics)))
    if setup.method.frozen:
        _check_frozen(config, state, params, masks)
    lineage = {
        "seed": config.seed,
        "parents": parents,
        "pruning_ratio": start.pruning_ratio,
        "weights": {k: start[k] for k in ("weights", "scale_fan")},
        "pruning": {k: start[k] for k in ("layer_ratios", "rounding", "rounds", "ablation")},
        "prunable_rule": config.masks.prunable,
        "masks": config.masks.to_dict(),
        "method": config.method.to_dict(),
        "model": config.model.to_dict(),
        "data": config.data.to_dict(),
        "images": setup.data.images["train"],
        "precision": config.precision,
        "num_classes": setup.source.num_classes,
        "image_shape": list(image_shape),
    }
    return state, lineage
