"""The compiled programs of a run: ordinary steps, the mask update, evaluation, a look.

Batches of resident data are cut inside the program, a chunk of steps at a time; those of streamed data are
placed by the host, one step at a time, while the device is busy with the steps before.

Made once per recipe and reused by every cycle of a chain: nothing about a cycle (masks, counts,
densities, chunk lengths) is baked in, so no cycle recompiles. The step count is a host number that
all members of a population share; the programs take the rest of the state with a member axis. `judge` is
the network as it is evaluated.
"""

import functools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from giung2_ext.core.method import Method
from giung2_ext.data.preprocessing import mixup
from giung2_ext.data.resident import Feed
from giung2_ext.training.population import Population
from giung2_ext.training.state import DATA, MIX, State
from giung2_ext.training.step import Metrics, Moves, evaluate_sums

Tree = Any
AHEAD = 2  # streamed steps that may wait on the device: their batches lie in its memory


class Program(NamedTuple):
    chunk: Callable[[State, Tree, int], tuple[State, Metrics]]
    """(state, data, length): `length` ordinary steps; donates the state. `data` is a split that lies on the
    devices, or what gives the placed batch of a step (`data.reader.Reader`)"""
    update: Callable[[State, Tree], tuple[State, Metrics, Moves | None]]
    """One mask-update step; donates the state"""
    observe: Callable[[State], tuple[Tree, Tree, Tree]]
    """What a ticket holds: the weights that the network sees (of the moving average, if there is
    one), their masks, the statistics"""
    lower: Callable[[State, Tree], list[jax.stages.Lowered]]
    """(shapes of the state, data or the shapes of a batch): the steps' programs, to be looked at"""
    lower_evaluation: Callable[[State, Tree], jax.stages.Lowered]
    """The same of one streamed batch's evaluation"""
    evaluate: Callable[[tuple[Tree, Tree], Tree], Mapping[str, Array]]
    """((weights, statistics), padded batches or an iterable of placed ones) -> sums of loss, correct,
    seen"""


def make_program(
    judge: nn.Module,
    method: Method,
    steps: tuple[Callable[..., Any], Callable[..., Any]],
    feed: Feed | None,
    population: Population,
    mix: float = 0.0,
) -> Program:
    """Programs on the batches that `feed` cuts, or on streamed ones; `mix` is mixup's alpha."""
    layout = population.layout

    def prepare(state: State, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        if mix:
            key = jax.random.fold_in(jax.random.fold_in(state.key, MIX), state.step)
            batch = mixup(mix, key, batch)
        return layout.rows(batch)

    make = _streamed if feed is None else functools.partial(_resident, feed)
    chunk, update, programs = make(steps, prepare, population)

    def observe(member: State) -> tuple[Tree, Tree, Tree]:
        trainable, statistics = member.trainable, member.statistics
        masks = method.masks(trainable, member.method)
        if member.average is not None:
            trainable, averaged = member.average
            statistics = statistics | averaged
        return method.weights(trainable, member.method), masks, statistics

    def evaluate(network: tuple[Tree, Tree], batches: Mapping[str, Array]) -> Mapping[str, Array]:
        return evaluate_sums(judge, *network, batches)

    compiled_observe = population.compile(observe)
    compiled_evaluate = population.compile(evaluate)
    evaluate_one = population.compile(lambda n, batch: evaluate(n, jax.tree.map(lambda x: x[None], batch)))

    def run_evaluate(network: tuple[Tree, Tree], batches: Tree) -> Mapping[str, Array]:
        if isinstance(batches, Mapping):
            return compiled_evaluate(network, batches)
        totals: Mapping[str, Array] | None = None
        waiting: deque[Any] = deque()
        for batch in batches:
            sums = evaluate_one(network, batch)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
            _wait(waiting, totals)
        assert totals is not None
        return totals

    def run_chunk(state: State, data: Tree, length: int) -> tuple[State, Metrics]:
        at = int(state.step)
        members, metrics = chunk(state.replace(step=None), at, data, length)
        return members.replace(step=np.int32(at + length)), metrics

    def run_update(state: State, data: Tree) -> tuple[State, Metrics, Moves | None]:
        at = int(state.step)
        members, (metrics, moves) = update(state.replace(step=None), at, data)
        return members.replace(step=np.int32(at + 1)), metrics, moves

    def lower(state: State, data: Tree) -> list[jax.stages.Lowered]:
        ordinary, due = programs(state.replace(step=None), data)
        return [ordinary] + ([due()] if method.due is not None else [])

    def lower_evaluation(state: State, batch: Tree) -> jax.stages.Lowered:
        shapes = jax.eval_shape(observe, state.replace(step=None))
        network = population.layout.abstract((shapes[0], shapes[2]))
        return evaluate_one.lower(network, batch)

    return Program(
        chunk=run_chunk,
        update=run_update,
        observe=lambda state: compiled_observe(state.replace(step=None)),
        lower=lower,
        lower_evaluation=lower_evaluation,
        evaluate=run_evaluate,
    )


Steps = tuple[Callable[..., Any], Callable[..., Any]]
Runners = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _resident(feed: Feed, steps: Steps, prepare: Callable[..., Any], population: Population) -> Runners:
    """Chunks and updates on batches that are cut inside the program, and what lowers both."""
    step_fn, update_fn = steps
    layout = population.layout

    def batch_of(state: State, data: Mapping[str, Array], order: Array) -> Mapping[str, Array]:
        return prepare(state, feed.batch(data, order, jax.random.fold_in(state.key, DATA), state.step))

    def order_of(state: State) -> Array:
        epoch = state.step // feed.steps_per_epoch
        return layout.whole(feed.order(jax.random.fold_in(state.key, DATA), epoch))

    def chunk(
        member: tuple[State, Array], step: Array, data: Mapping[str, Array], length: Array, fresh: Array
    ) -> Any:
        """With the order of the epoch that it begins in, unless that is to be drawn afresh."""

        def body(_: Array, carry: Any) -> Any:
            state, order, metrics = carry
            new_epoch = state.step % feed.steps_per_epoch == 0  # shared by members: a true branch
            order = jax.lax.cond(new_epoch, lambda: order_of(state), lambda: order)
            state, now = step_fn(state, batch_of(state, data, order))
            state = layout.owned(state)
            return state, order, metrics.merge(now)

        state, order = member[0].replace(step=step), layout.whole(member[1])
        order = jax.lax.cond(fresh, lambda: order_of(state), lambda: order)
        state, order, metrics = jax.lax.fori_loop(0, length, body, (state, order, Metrics.zeros()))
        return (state.replace(step=None), order), metrics

    def update(member: State, step: Array, data: Mapping[str, Array]) -> Any:
        state = member.replace(step=step)
        state, *results = update_fn(state, batch_of(state, data, order_of(state)))
        return state.replace(step=None), tuple(results)

    compiled_chunk = population.compile(chunk, donate=True)
    compiled_update = population.compile(update, donate=True)
    orders = population.abstract_whole(jax.ShapeDtypeStruct(feed.arrays["labels"].shape, jnp.int32))
    blank = jax.jit(lambda: jnp.zeros(orders.shape, orders.dtype), out_shardings=orders.sharding)
    last: dict[str, Any] = {"key": None}  # whose chunk was the last, where it ended, and their orders

    def run_chunk(members: State, at: int, data: Mapping[str, Array], length: int) -> tuple[State, Metrics]:
        fresh = last["key"] is not members.key or last["at"] != at
        given = (members, blank() if fresh else last["orders"])
        last["key"] = None
        (members, order), metrics = compiled_chunk(
            given, np.int32(at), data, np.int32(length), np.bool_(fresh)
        )
        last.update(key=members.key, at=at + length, orders=order)
        return members, metrics

    def lower(members: State, data: Mapping[str, Array]) -> Any:
        return (
            compiled_chunk.lower((members, orders), np.int32(0), data, np.int32(1), np.bool_(True)),
            lambda: compiled_update.lower(members, np.int32(0), data),
        )

    def run_update(members: State, at: int, data: Mapping[str, Array]) -> Any:
        return compiled_update(members, np.int32(at), data)

    return run_chunk, run_update, lower


def _streamed(steps: Steps, prepare: Callable[..., Any], population: Population) -> Runners:
    """The same on batches that the host places, step by step."""
    step_fn, update_fn = steps

    def run(member: State, step: Array, batch: Tree, total: Metrics) -> Any:
        state = member.replace(step=step)
        state, now = step_fn(state, prepare(state, batch))
        return state.replace(step=None), total.merge(now)

    def run_due(member: State, step: Array, batch: Tree) -> Any:
        state = member.replace(step=step)
        state, *results = update_fn(state, prepare(state, batch))
        return state.replace(step=None), tuple(results)

    one = population.compile(run, donate=True)
    other = population.compile(run_due, donate=True)
    start = jax.eval_shape(Metrics.zeros)
    place_zeros = functools.cache(lambda: population.share(jax.tree.map(np.asarray, Metrics.zeros())))
    waiting: deque[Any] = deque()

    def chunk(members: State, at: int, data: Any, length: int) -> tuple[State, Metrics]:
        total = place_zeros()
        for step in range(at, at + length):
            members, total = one(members, np.int32(step), data.batch(step), total)
            _wait(waiting, total)
        return members, total

    def update(members: State, at: int, data: Any) -> Any:
        return other(members, np.int32(at), data.batch(at))

    def lower(members: State, batch: Tree) -> Any:
        return (
            one.lower(members, np.int32(0), batch, population.abstract_shared(start)),
            lambda: other.lower(members, np.int32(0), batch),
        )

    return chunk, update, lower


def _wait(waiting: "deque[Any]", newest: Tree) -> None:
    """Lets no more than `AHEAD` steps wait on the device, so that their batches fit in its memory."""
    waiting.append(newest)
    if len(waiting) > AHEAD:
        jax.block_until_ready(waiting.popleft())
