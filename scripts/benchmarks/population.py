"""Trials trained together, in each strategy, against PyTorch training one after another.

LeNet-300-100 on images of MNIST's shape (batch 60, Adam at 1.2e-3) and Conv-2 on CIFAR-10's (Adam at
2e-4), random images in uint8, half of the weights pruned. Ours is the program of `imp.py`: batches in
random order cut on the device, chunks of 100 steps as between two evaluations. A turn is as many steps x
trials for every contender. PyTorch (extra `torch`, left out without it) takes batches by index from one
tensor and multiplies masks into the weights.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import criteria, masks, schedules
from giung2_ext.core.allocate import keep_count
from giung2_ext.data import resident
from giung2_ext.data.source import Split
from giung2_ext.methods import ticket
from giung2_ext.models import conv, lenet
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.population import Population
from giung2_ext.training.program import make_program
from giung2_ext.training.state import DATA, init_variables, make_state, seed_key
from giung2_ext.training.step import make_step

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError:
    torch = None

BATCH, CHECKED = 60, 3  # images a step, steps whose losses are compared


class Task:
    """A network, its images and its rate, and trial i's state."""

    def __init__(self, model, image, size, rate):
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (size, *image), dtype=np.uint8)
        self.model, self.image, self.rate = model, image, rate
        self.feed = resident.make_feed(Split(images, draw.integers(0, 10, size, dtype=np.int32)), BATCH)
        self.method, self.optimizer = ticket.build(), make_optimizer("adam", 0.9)
        self.member = jax.jit(self._member)

    def _member(self, i):
        params, statistics = init_variables(self.model, seed_key(i), self.image)
        channels = self.image[-1]
        statistics |= {"image_stats": {"m": jnp.full(channels, 0.5), "s": jnp.full(channels, 0.25)}}
        every = masks.dense(params, "kernels")
        kept = criteria.prune_magnitude(params, every, keep_count(0.5, masks.size(every)))
        state = make_state(self.method, self.optimizer, seed_key(i), params, kept, statistics)
        return state.replace(step=None)

    def first_order(self):
        """The order in which trial 0 sees the images in its first epoch."""
        return np.asarray(self.feed.order(jax.random.fold_in(seed_key(0), DATA), 0))


class Ours:
    def __init__(self, task, trials, strategy):
        convolutions = isinstance(task.model, conv.Conv)
        self.trials = trials
        self.population = Population(trials, strategy, convolutions=convolutions)
        pair = make_step(task.model, task.method, task.optimizer, schedules.constant(task.rate))
        self.program = make_program(task.model, task.method, pair, task.feed, self.population)
        self.data = self.population.share(task.feed.arrays)
        members = [task.member(i) for i in range(trials)]
        self.state = self.population.join(members).replace(step=np.int32(0))

    def advance(self, steps):
        """Trial 0's mean loss over so many steps of every trial."""
        self.state, metrics = self.program.chunk(self.state, self.data, steps)
        return self.population.gather(metrics.loss)[0] / (steps * BATCH)

    def memory(self):
        state = self.state
        used = sum(leaf.nbytes for leaf in jax.tree.leaves(state.replace(step=None)))
        (lowered,) = self.program.lower(state, self.data)
        scratch = (
            lowered.compile().memory_analysis().temp_size_in_bytes * self.population.mesh.size
        )  # a device's
        shares = (amount / self.population.slots / 1e6 for amount in (used, scratch))
        return "a trial takes {:.1f} MB of state and {:.1f} MB of scratch".format(*shares)


class Torch:
    """One trial, with our layout of the weights; `kind` is eager, fused or compiled."""

    def __init__(self, task, kind):
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")  # as JAX does
        state = task.member(0)
        tensor = lambda x: torch.tensor(np.asarray(x), device=device)  # noqa: E731
        arrays = task.feed.arrays
        self.images, self.labels = tensor(arrays["images"]), tensor(arrays["labels"]).long()
        self.order, self.at = tensor(task.first_order()).long(), 0
        names = sorted(state.trainable, key=lambda name: (name[0] == "c", name[0] == "D", name))
        self.layers = []
        for name in names:  # Conv_i, Dense_i, cls
            kernel, mask = state.trainable[name]["kernel"], state.method[name]["kernel"]
            axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            weight, mask = (tensor(x).permute(axes).contiguous() for x in (kernel, mask))
            bias = tensor(state.trainable[name]["bias"]).requires_grad_()
            self.layers.append((weight.requires_grad_(), mask.float(), bias))
        trained = [x for weight, _, bias in self.layers for x in (weight, bias)]
        self.optimizer = torch.optim.Adam(trained, task.rate, fused=None if kind == "eager" else True)
        self.loss = torch.compile(self.forward, dynamic=False) if kind == "compiled" else self.forward

    def forward(self, pixels_BHWC, labels):
        x = (pixels_BHWC.float() / 255 - 0.5) / 0.25
        x = x.permute(0, 3, 1, 2)
        for i, (weight, mask, bias) in enumerate(self.layers):
            if weight.ndim == 4:
                x = functional.relu(functional.conv2d(x, weight * mask, bias, padding=1))
                if i % 2:
                    x = functional.max_pool2d(x, 2)
                continue
            if x.ndim == 4:
                x = x.permute(0, 2, 3, 1).flatten(1)  # our dense layers see channels last
            x = functional.linear(x, weight * mask, bias)
            if i < len(self.layers) - 1:
                x = functional.relu(x)
        return functional.cross_entropy(x, labels)

    def advance(self, steps):
        total = 0
        for _ in range(steps):
            if self.at + BATCH > len(self.order):
                self.order, self.at = torch.randperm(len(self.order), device=self.order.device), 0
            rows = self.order[self.at : self.at + BATCH]
            self.at += BATCH
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.images[rows], self.labels[rows])
            loss.backward()
            self.optimizer.step()
            total = total + loss.detach()
        return float(total) / steps


def rivals(task, kinds):
    """PyTorch's contenders and their first losses; what cannot run here is a note."""
    found, losses, notes = {}, {}, []
    if torch is None:
        return found, losses, ["without PyTorch, which is not installed (extra torch)"]
    for kind in kinds:
        trial = Torch(task, kind)
        try:
            losses[kind] = [trial.advance(1) for _ in range(CHECKED)]
        except RuntimeError as error:
            if kind != "compiled":
                raise
            notes.append(f"torch.compile cannot run here: {str(error).splitlines()[0]}")
            continue
        found[f"PyTorch {kind}"] = trial.advance
    return (
        found,
        losses,
        [*notes, f"torch {torch.__version__}, one trial, {torch.get_num_threads()} threads"],
    )


def part(title, task, cases, chunk, aims, kinds=()):
    """One table; `cases` are (trials, strategy), ours first, and a turn is a chunk of the most trials."""
    work = chunk * max(trials for trials, _ in cases)
    contenders, losses, memory = {}, {}, []
    for trials, strategy in cases:
        name = f"{trials} trial{'s' * (trials > 1)}, {strategy}"
        one = Ours(task, trials, strategy)
        losses[name] = [one.advance(1) for _ in range(CHECKED)]
        turns = work // (trials * chunk)
        contenders[name] = lambda one=one, turns=turns: [one.advance(chunk) for _ in range(turns)]
        if turns == 1:
            memory.append(lambda one=one, name=name: f"{name}: {one.memory()}")
    found, theirs, notes = rivals(task, kinds) if kinds else ({}, {}, [])
    contenders |= {name: lambda run=run: run(work) for name, run in found.items()}
    first, *others = (losses | theirs).values()
    assert len(set(first)) == CHECKED  # the weights have moved
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3)
    note = (
        f"{title}: {work} steps x trials a turn in chunks of {chunk}; {CHECKED} first losses equal to 0.1%"
    )
    aims = {name: aim for name, aim in aims.items() if name in contenders}
    return contenders, aims, [note, *notes, *memory], ("steps x trials", work)


def make(smoke, data_root):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)  # as `imp.py` does; before the backend starts
    cpu = jax.default_backend() == "cpu"
    many = [2] if smoke else [20, 5] if cpu else [20, 5, 100]
    both = [(n, strategy) for strategy in (("map", "vmap") if cpu else ("vmap", "map")) for n in many]
    kinds = ("eager", "fused") if smoke else ("eager", "fused", "compiled")
    dense = Task(lenet.build(10), (28, 28, 1), 600 if smoke else 55_000, 1.2e-3)
    aims = {"PyTorch eager": 2.5, "PyTorch fused": 1.5} if cpu else {"PyTorch eager": 30}
    yield part("LeNet-300-100", dense, [*both, (1, "map")], 5 if smoke else 100, aims, kinds)

    image = (8, 8, 3) if smoke else (32, 32, 3)
    deep = Task(conv.build(10), image, 600 if smoke else 6000 if cpu else 45_000, 2e-4)
    mapped = [(n, "map") for n in (*many, 1)]
    slow = cpu and not smoke  # grouped convolutions take minutes: two trials in a table of their own
    other = [] if slow else [(n, "vmap") for n in many]
    aims = {"1 trial, map": 1 / 1.05} | ({} if cpu else {"PyTorch eager": 30})
    yield part("Conv-2", deep, mapped + other, 2 if smoke or cpu else 100, aims, kinds)
    if slow:
        yield part("Conv-2 vmapped", deep, [(2, "map"), (2, "vmap")], 1, {})
