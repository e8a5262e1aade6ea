"""The compiled programs of a run: chunks of ordinary steps, the mask update, evaluation, a look.

Made once per recipe and reused by every cycle of a chain: nothing about a cycle (masks, counts,
densities, chunk lengths) is baked in, so no cycle recompiles. The step count is a host number that
all members of a population share; the programs take the rest of the state with a member axis. `judge` is
the network as it is evaluated.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array

from giung2_ext.core.method import Method
from giung2_ext.data.resident import Feed
from giung2_ext.training.population import Population
from giung2_ext.training.state import DATA, State
from giung2_ext.training.step import Metrics, evaluate_sums

Tree = Any


class Program(NamedTuple):
    chunk: Callable[[State, Tree, int], tuple[State, Metrics]]
    """(state, data, length): `length` ordinary steps; donates the state"""
    update: Callable[[State, Tree], tuple[State, Metrics]]
    """One mask-update step; donates the state"""
    observe: Callable[[State], tuple[Tree, Tree, Tree]]
    """What a ticket holds: the weights that the network sees (of the moving average, if there is
    one), their masks, the statistics"""
    compile: Callable[[State, Tree], list[jax.stages.Compiled]]
    """(shapes of the state, data): the chunk's program and the update's, to be looked at"""
    evaluate: Callable[[tuple[Tree, Tree], Tree], Mapping[str, Array]]
    """((weights, statistics), padded batches) -> sums of loss, correct, seen"""


def make_program(
    judge: nn.Module,
    method: Method,
    steps: tuple[Callable[..., Any], Callable[..., Any]],
    feed: Feed,
    population: Population,
) -> Program:
    step_fn, update_fn = steps

    layout = population.layout

    def batch_of(state: State, data: Mapping[str, Array], order: Array) -> Mapping[str, Array]:
        return layout.rows(feed.batch(data, order, jax.random.fold_in(state.key, DATA), state.step))

    def order_of(state: State) -> Array:
        epoch = state.step // feed.steps_per_epoch
        return layout.whole(feed.order(jax.random.fold_in(state.key, DATA), epoch))

    def chunk(member: State, step: Array, data: Mapping[str, Array], length: Array) -> Any:
        def body(_: Array, carry: Any) -> Any:
            state, order, metrics = carry
            new_epoch = state.step % feed.steps_per_epoch == 0  # shared by members: a true branch
            order = jax.lax.cond(new_epoch, lambda: order_of(state), lambda: order)
            state, now = step_fn(state, batch_of(state, data, order))
            state = layout.owned(state)
            return state, order, metrics.merge(now)

        state = member.replace(step=step)
        state, _, metrics = jax.lax.fori_loop(0, length, body, (state, order_of(state), Metrics.zeros()))
        return state.replace(step=None), metrics

    def update(member: State, step: Array, data: Mapping[str, Array]) -> Any:
        state = member.replace(step=step)
        state, metrics = update_fn(state, batch_of(state, data, order_of(state)))
        return state.replace(step=None), metrics

    def observe(member: State) -> tuple[Tree, Tree, Tree]:
        trainable, statistics = member.trainable, member.statistics
        masks = method.masks(trainable, member.method)
        if member.average is not None:
            trainable, averaged = member.average
            statistics = statistics | averaged
        return method.weights(trainable, member.method), masks, statistics

    def evaluate(network: tuple[Tree, Tree], batches: Mapping[str, Array]) -> Mapping[str, Array]:
        return evaluate_sums(judge, *network, batches)

    compiled_chunk = population.compile(chunk, donate=True)
    compiled_update = population.compile(update, donate=True)
    compiled_observe = population.compile(observe)

    def run_chunk(state: State, data: Tree, length: int) -> tuple[State, Metrics]:
        at = np.int32(state.step)
        members, metrics = compiled_chunk(state.replace(step=None), at, data, np.int32(length))
        return members.replace(step=np.int32(at + length)), metrics

    def run_update(state: State, data: Tree) -> tuple[State, Metrics]:
        at = np.int32(state.step)
        members, metrics = compiled_update(state.replace(step=None), at, data)
        return members.replace(step=np.int32(at + 1)), metrics

    def compile_both(state: State, data: Tree) -> list[jax.stages.Compiled]:
        members = state.replace(step=None)
        lowered = [compiled_chunk.lower(members, np.int32(0), data, np.int32(1))]
        if method.due is not None:
            lowered.append(compiled_update.lower(members, np.int32(0), data))
        return [one.compile() for one in lowered]

    return Program(
        chunk=run_chunk,
        update=run_update,
        observe=lambda state: compiled_observe(state.replace(step=None)),
        compile=compile_both,
        evaluate=population.compile(evaluate),
    )
