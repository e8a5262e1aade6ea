"""The mask that a run starts from, as a criterion chooses it before the first step.

Four choices that go with each other: criterion (scores), allocation (one budget, or a count for every
layer), structure (none or n:m) and density. `synflow` is iterated here, in float64 on a CPU, because its
flow overflows float32; ResNet-50 on images of 224x224 takes it 6 s of a core a round, 100 times
(2026-11-27, jax 0.10.2).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from giung2_ext.core import allocate, criteria, select, structure, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.sensitivity import sensitivity
from giung2_ext.experiments.setup import Setup
from giung2_ext.training import processes
from giung2_ext.training import state as states

Tree = Any
CRITERIA = ("none", "random", "magnitude", "snip", "grasp", "synflow")
ALLOCATIONS = ("global", "uniform", "erk")

_magnitude, _apply = jax.jit(criteria.magnitude), jax.jit(masking.apply)


def check_choice(config: Config) -> None:
    """The combinations that mean something; called before anything is built."""
    rule = config.masks
    for field, known in (("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
        if rule[field] not in known:
            raise unknown(f"config.masks.{field}", rule[field], known)
    allocate.check_fraction(rule.density, "config.masks.density")
    if rule.batches < 1:
        raise Refusal(f"config.masks.batches must be at least 1, got {rule.batches}")
    given = [f"config.masks.density={rule.density:g}"] if rule.density < 1 else []
    if rule.structure != "none":
        kept, of = structure.parse(rule.structure)
        pattern = f"config.masks.structure={rule.structure}"
        says = f"{pattern} keeps {kept / of:g} of every layer"
        if given and round(rule.density * of, 9) != kept:
            raise Refusal(f"{says}: leave {given[0]} out")
        if rule.allocation == "erk":
            raise Refusal(f"{says}: config.masks.allocation=erk does not")
        given.append(pattern)
    if rule.criterion == "none" and given:
        own = "density" in config.method and "; this method's own density is config.method.density"
        raise Refusal(f"{given[0]} needs a config.masks.criterion ({', '.join(CRITERIA[1:])}){own or ''}")


def choose(config: Config, setup: Setup, params: Tree, statistics: Tree, masks: Tree) -> Tree:
    """The mask of config.masks: density times all prunable weights, chosen among the survivors `masks`."""
    rule, put = config.masks, setup.population.put
    if rule.criterion == "none":
        return masks
    counts = _counts(config, masks)
    if rule.criterion == "synflow":
        return put(_synflow(config, setup, params, statistics, masks, counts))
    placed = put(masks)
    if rule.criterion == "random":
        key = jax.random.fold_in(states.seed_key(config.seed), states.CRITERION)
        scores = put(jax.device_get(criteria.random(key, masks)))
    elif rule.criterion == "magnitude":
        scores = _magnitude(put(params), placed)
    else:
        scores = sensitivity(config, setup, _apply(placed, put(params)), put(statistics), placed)
        _check_scores(config, scores, placed)
    return _select(scores, counts, placed, rule.structure)


@functools.partial(jax.jit, static_argnums=3)
def _select(scores: Tree, counts: Tree, among: Tree, pattern: str) -> Tree:
    """`counts` is one number for the whole tree, or a tree of them."""
    if pattern != "none":
        alive = trees.map_present(lambda m, s: jnp.where(m, s, -jnp.inf), among, scores)
        scores = structure.protect(alive, pattern)
    top = select.top_k_each if isinstance(counts, dict) else select.top_k
    return top(scores, counts, among)


def _counts(config: Config, masks: Tree) -> Tree:
    """How many weights are kept: of all layers together, or of every one."""
    rule, alive = config.masks, jax.device_get(masking.counts(masks))
    if rule.structure != "none":
        kept, of = structure.parse(rule.structure)
        structure.check(masks, rule.structure)
        for name, mask in trees.named_leaves(masks).items():
            if mask is not None and (least := structure.grouped(mask, rule.structure).sum(-2).min()) < kept:
                raise Refusal(
                    f"config.masks.structure={rule.structure} asks for {kept} of every {of} weights where "
                    f"the checkpoint's mask has {least} left, in {name}"
                )
        return trees.map_present(lambda mask: np.int32(mask.size // of * kept), masks)
    if rule.allocation == "global":
        keep = allocate.keep_count(rule.density, masking.size(masks), "config.masks.density")
        _check_survivors(config, keep, sum(trees.present(alive)))
        return np.int32(keep)
    counts = allocate.layer_counts(masks, rule.density, rule.allocation)
    for count, survivors in zip(trees.present(counts), trees.present(alive), strict=True):
        _check_survivors(config, count, survivors)
    return counts


def _check_survivors(config: Config, wanted: int, alive: int) -> None:
    if wanted > alive:
        raise Refusal(
            f"config.masks.density={config.masks.density:g} ({config.masks.allocation}) asks for "
            f"{wanted:,} weights where the checkpoint's mask has {alive:,} left"
        )


@jax.jit
def _faults(scores: Tree, masks: Tree) -> tuple[Tree, Tree]:
    """Of every layer: whether it has weights and all of their scores are 0; whether all are finite."""
    silent = trees.map_present(lambda s, m: m.any() & ~(m & (s != 0)).any(), scores, masks)
    return silent, trees.map_present(lambda s: jnp.isfinite(s).all(), scores)


def _check_scores(config: Config, scores: Tree, masks: Tree) -> None:
    """A layer that no gradient reaches, or whose gradients overflow, cannot be ranked."""
    silent, finite = map(trees.named_leaves, jax.device_get(_faults(scores, masks)))
    model, name = config.model, config.masks.criterion
    for leaf, fine in finite.items():
        if fine is not None and not fine:
            raise Refusal(f"the {name} scores of {leaf} are not finite: the network overflows as it starts")
        if fine is not None and silent[leaf]:
            remedies = ["--config.model.head=biased"] * (model.get("head") == "zero")
            remedies += ["--config.model.zero_init=false"] * bool(model.get("zero_init"))
            raise Refusal(
                f"the {name} scores of {leaf} are all 0, as no gradient comes through it when the network "
                f"starts: {' '.join(remedies) or 'start from other weights'}"
            )


@functools.lru_cache
def _flow_scores(model: nn.Module, image_shape: tuple[int, ...]) -> Callable[..., Tree]:
    def scores(params: Tree, statistics: Tree, masks: Tree) -> Tree:
        def flow(weights: Tree) -> Any:
            image = jnp.ones((1, *image_shape), jnp.float64)
            return model.apply({"params": weights, **statistics}, image, train=False).sum()

        found = criteria.synflow(flow, params, masks)
        return jax.tree.map(lambda s: s.astype(jnp.float32), found)  # what selection orders

    return jax.jit(scores)


def _synflow(
    config: Config, setup: Setup, params: Tree, statistics: Tree, masks: Tree, counts: Tree
) -> Tree:
    """Masks on the host, chosen anew in every round among what the last one left."""
    population = setup.population
    others = {name: value for name, value in statistics.items() if name != "image_stats"}
    host = jax.device_get(jax.jit(population.layout.whole)(population.put((params, others))))
    params, others = jax.tree.map(lambda x: np.abs(np.asarray(x, np.float64)), host)
    scores_of = _flow_scores(setup.model.clone(dtype=jnp.float64), setup.source.image_shape)
    if isinstance(counts, dict):
        left = jax.tree.map(lambda count, mask: criteria.remaining(count, mask.size), counts, masks)
    else:
        left = criteria.remaining(counts, masking.size(masks))
    with jax.default_device(_cpu()):
        for turn in range(criteria.ROUNDS):
            with jax.enable_x64(True):
                scores = scores_of(params, others, masks)
            if turn == 0:
                _check_scores(config, scores, masks)
            now = jax.tree.map(lambda counts: counts[turn], left)  # noqa: B023
            masks = _select(scores, now, masks, config.masks.structure)
    masks = jax.device_get(masks)
    processes.check_same(masking.digest(masks), "what synflow keeps; run them on equal processors")
    return masks


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise Refusal(
            "synflow needs a CPU device beside the accelerator: add cpu to JAX_PLATFORMS, or leave it out"
        ) from error
