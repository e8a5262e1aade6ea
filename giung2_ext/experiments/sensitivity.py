"""Gradients of a run's own loss on its own first batches, which snip and grasp rank weights by.

Same pixels, BatchNorm in training mode, in micro-batches as the run is cut, on the run's devices, but in
float32 whatever it trains in. Nothing of the run's state moves: its first step sees these batches again.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from giung2_ext.core import criteria, trees
from giung2_ext.data.preprocessing import mixup
from giung2_ext.experiments.config import Config, group_of
from giung2_ext.experiments.setup import Setup
from giung2_ext.training import accumulation
from giung2_ext.training import state as states
from giung2_ext.training import step as steps
from giung2_ext.training.sharding import Layout

Tree = Any

_snip, _grasp = jax.jit(criteria.snip), jax.jit(criteria.grasp)
_add = jax.jit(functools.partial(jax.tree.map, jnp.add))


class _Cooled(nn.Module):
    """A network whose logits are divided by a temperature; its parameters keep their names."""

    network: nn.Module
    temperature: float

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, images: Any, train: bool = False) -> Any:
        return self.network(images, train) / self.temperature


@functools.lru_cache
def _programs(
    model: nn.Module, smoothing: float, layout: Layout, slices: int, shares: int
) -> tuple[Callable[..., Tree], Callable[..., Tree]]:
    """Gradient, and Hessian times a direction, of one batch's mean loss; compiled once for all members."""
    gradients = steps.make_gradients(model, smoothing, layout, shares)

    def gradient(weights: Tree, statistics: Tree, batch: Tree) -> Tree:
        return gradients(layout.whole(weights), statistics, batch, slices)[0]

    def product(weights: Tree, statistics: Tree, batch: Tree, direction: Tree) -> Tree:
        weights = layout.whole(weights)

        def one(part: Tree) -> Tree:
            of_part = lambda w: gradients(w, statistics, layout.rows(part), 1)[0]  # noqa: E731
            return layout.owned(criteria.hessian_gradient(of_part, weights, direction))

        if slices == 1:
            return one(batch)
        parts = layout.rows(steps.cut(batch, slices, shares), axis=1)
        add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, layout.owned(jax.tree.map(jnp.zeros_like, weights)), parts)
        return jax.tree.map(lambda x: x / slices, total)

    return jax.jit(gradient), jax.jit(product)


def sensitivity(config: Config, setup: Setup, weights: Tree, statistics: Tree, masks: Tree) -> Tree:
    """The scores of snip or grasp, of weights that are 0 where the mask is."""
    layout, slices, grasp = setup.population.layout, setup.micro_batches, config.masks.criterion == "grasp"
    shares = accumulation.shares(config.feed.batch_size, layout.devices, group_of(config), slices)
    model = setup.model.clone(dtype=jnp.float32)
    if grasp:
        model = _Cooled(model, criteria.TEMPERATURE)
    gradient, product = _programs(model, config.optim.label_smoothing, layout, slices, shares)

    def mean(program: Callable[..., Tree], *given: Tree) -> Tree:
        found = (program(weights, statistics, batch, *given) for batch in _batches(config, setup))
        return jax.tree.map(lambda x: x / config.masks.batches, functools.reduce(_add, found))

    grads = mean(gradient)
    if not grasp:
        return _snip(weights, masks, grads)
    prunable = lambda m, g: jnp.zeros_like(g) if m is None else jnp.where(m, g, 0)  # noqa: E731
    direction = jax.tree.map(prunable, masks, grads, is_leaf=trees.is_none)
    return _grasp(weights, masks, mean(product, direction))


@functools.lru_cache
def _cutter(
    order: Any, batch: Any, steps_per_epoch: int, mix: float, layout: Layout
) -> Callable[..., Tree]:
    """(key of the run, data, step) -> the batch that the run's own program makes of them."""

    def cut(key: Any, data: Tree, step: Any) -> Tree:
        if batch is not None:
            own = jax.random.fold_in(key, states.DATA)
            data = batch(data, layout.whole(order(own, step // steps_per_epoch)), own, step)
        if mix:
            data = mixup(mix, jax.random.fold_in(jax.random.fold_in(key, states.MIX), step), data)
        return layout.rows(data)

    return jax.jit(cut)


def _batches(config: Config, setup: Setup) -> Iterator[Tree]:
    """The run's first batches."""
    feed, population = setup.data.feed, setup.population
    own = (None, None, 1) if feed is None else (feed.order, feed.batch, feed.steps_per_epoch)
    cut = _cutter(*own, config.feed.mixup, population.layout)
    key = states.seed_key(config.seed)
    with setup.data.open(config.seed) as data:
        if not population.solo:  # a member's state is made on one device
            data = jax.tree.map(lambda x: x.addressable_data(0), data)
        for step in range(config.masks.batches):
            yield cut(key, data if feed is not None else data.batch(step), np.int32(step))
