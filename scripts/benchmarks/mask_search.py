"""A training step that searches a mask over frozen weights, against one that trains the weights.

Jackpots' `swap` form and its `threshold` form (a selection in every leaf at every forward pass),
`multiprize`, and a dense step; and in PyTorch (extra `torch`, left out without it) the rule as edge-popup
published it: every layer's |scores| are flattened and sorted at every forward pass. ResNet-32 of 32 planes
at density 0.1, batch 16, on an accelerator 256; LeNet-300-100 at batch 256, where the search is a large
part of a step, without an aim. float32, and all have the same frozen weights, batch and SGD. A dense step
1.15 times as fast as the swap form and 1.25 times as fast as the threshold form is the aim. `--smoke` has
LeNet-300-100 alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.mask_overhead import DENSE, random_batch
from giung2_ext.core import criteria, masks, schedules
from giung2_ext.core.allocate import keep_count
from giung2_ext.methods import jackpots, multiprize
from giung2_ext.models import lenet, resnet_cifar
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.state import init_variables, make_state, seed_key
from giung2_ext.training.step import make_step

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError:
    torch = None

GAP = 1e-5  # between kept and pruned scores: small, so that masks move from the first step on
RATE, CHECKED = 0.1, 2  # steps whose losses are compared: differences double and redouble
OURS = {
    "jackpots swap": lambda: jackpots.build(gap=GAP),
    "jackpots threshold": lambda: jackpots.build(rule="threshold", gap=GAP),
    "multiprize": multiprize.build,
    "dense": lambda: DENSE,
}
SWAP, THRESHOLD, *_ = OURS
REFERENCE = "PyTorch, sorted"


class Task(NamedTuple):
    title: str
    params: Any
    statistics: Any
    kept: Any
    model: Any
    data: Any
    steps: int  # a turn


def make_task(title, model, image, batch, steps):
    params, statistics = jax.jit(lambda key: init_variables(model, key, image))(seed_key(0))
    channels = image[-1]
    statistics |= {"image_stats": {"m": jnp.full(channels, 0.5), "s": jnp.full(channels, 0.25)}}
    every = masks.dense(params, "body")
    kept = jax.jit(criteria.prune_magnitude)(params, every, keep_count(0.1, masks.size(every)))
    return Task(title, params, statistics, kept, model, random_batch(image, batch, 10), steps)


def stepper(task, method):
    """Takes one step a call and gives its loss."""
    optimizer = make_optimizer("sgd", 0.9, 1e-4)
    step, _ = make_step(task.model, method, optimizer, schedules.constant(RATE))
    run = jax.jit(step, donate_argnums=0)

    @jax.jit
    def begin(given):
        return make_state(method, optimizer, seed_key(0), *jax.tree.map(jnp.copy, given))

    state = begin((task.params, task.kept, task.statistics))

    def advance():
        nonlocal state
        state, metrics = run(state, task.data)
        return metrics.loss.block_until_ready() / len(task.data["labels"])

    return advance


def sorted_mask(scores, kept):
    """1 for the `kept` largest |scores| and 0 for the rest; its gradient passes through."""

    class Mask(torch.autograd.Function):
        @staticmethod
        def forward(context, sizes):
            order = sizes.flatten().argsort()
            mask = torch.empty_like(order, dtype=sizes.dtype)
            mask[order[:-kept]] = 0
            mask[order[-kept:]] = 1
            return mask.view_as(sizes)

        @staticmethod
        def backward(context, gradient):
            return gradient

    return Mask.apply(scores.abs())


class Torch:
    """The same search with our layout of the weights."""

    def __init__(self, task):
        self.device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high" if self.device == "cuda" else "highest")  # as JAX does
        kind = "Conv" if "Conv_0" in task.params else "Dense"
        names = [f"{kind}_{i}" for i in range(sum(name.startswith(kind) for name in task.params))]
        self.kernels = [self.kernel(task.params[name]["kernel"]) for name in names]
        kept = [self.kernel(task.kept[name]["kernel"]) for name in names]
        self.kept = [int(mask.sum()) for mask in kept]
        self.scores = [(1 - GAP * ~mask).requires_grad_() for mask in kept]
        self.optimizer = torch.optim.SGD(self.scores, RATE, momentum=0.9, weight_decay=1e-4)
        norms = [name.replace("Conv", "BatchNorm") for name in names]  # a dense layer has its bias instead
        self.vectors = [
            {k: self.tensor(v) for k, v in task.params[n].items() if k != "kernel"} for n in norms
        ]
        self.head = self.kernel(task.params["cls"]["kernel"]), self.tensor(task.params["cls"]["bias"])
        self.images = self.tensor(task.data["images"]).permute(0, 3, 1, 2)
        self.labels = self.tensor(task.data["labels"]).long()
        self.loss = self.lenet if kind == "Dense" else self.resnet

    def tensor(self, array):
        return torch.tensor(np.asarray(array), device=self.device)

    def kernel(self, array):
        kernel = self.tensor(array)
        if kernel.ndim == 2:
            return kernel.T.contiguous()
        return kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

    def weight(self, i):
        return self.kernels[i] * sorted_mask(self.scores[i], self.kept[i])

    def lenet(self, x):
        x = x.flatten(1)
        for i, vector in enumerate(self.vectors):
            x = functional.relu(functional.linear(x, self.weight(i), vector["bias"]))
        return functional.linear(x, *self.head)

    def layer(self, i, x, stride=1):
        x = functional.conv2d(x, self.weight(i), stride=stride, padding=1)
        vector = self.vectors[i]
        return functional.batch_norm(x, None, None, vector["scale"], vector["bias"], training=True)

    def resnet(self, x):
        x = functional.relu(self.layer(0, x.contiguous(memory_format=torch.channels_last)))
        for i in range(1, len(self.kernels), 2):
            stride = 1 + (self.kernels[i].shape[0] > self.kernels[i].shape[1])
            y = self.layer(i + 1, functional.relu(self.layer(i, x, stride)))
            if stride > 1:
                more = (y.shape[1] - x.shape[1]) // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
            x = functional.relu(x + y)
        return functional.linear(x.mean((2, 3)), *self.head)

    def advance(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.loss((self.images.float() / 255 - 0.5) / 0.25), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def contenders_of(task):
    """{name: what takes one step and gives its loss}, and what is missing."""
    found = {name: stepper(task, build()) for name, build in OURS.items()}
    if torch is None:
        return found, "without PyTorch, which is not installed (extra torch)"
    found[REFERENCE] = Torch(task).advance
    return found, f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def parts(task, tables):
    """A table for every (names or None: all, aims), ours first, after all first losses were compared."""
    steps, note = contenders_of(task)
    losses = {name: [float(step()) for _ in range(CHECKED)] for name, step in steps.items()}
    np.testing.assert_allclose(losses[SWAP][0], losses[THRESHOLD][0], rtol=1e-5)  # the same mask
    if REFERENCE in losses:
        np.testing.assert_allclose(losses[REFERENCE], losses[THRESHOLD], rtol=1e-2)
    assert len(set(losses[THRESHOLD])) == CHECKED  # the masks have moved
    size = len(task.data["labels"])
    about = f"{task.title}: {task.steps} step(s) of {size} a turn; first losses checked"
    for names, aims in tables:
        turns = {
            name: lambda step=steps[name]: [step() for _ in range(task.steps)] for name in names or steps
        }
        yield turns, aims, [about, note], ("images", task.steps * size)


def make(smoke, data_root):
    cpu = jax.default_backend() == "cpu"
    if not smoke:  # compiling it takes too long to try things out
        network = resnet_cifar.build(10, depth=32, planes=32, shortcut="pad", padding="torch")
        task = make_task("ResNet-32, density 0.1", network, (32, 32, 3), *((16, 1) if cpu else (256, 20)))
        tables = [(None, {"dense": 1 / 1.15}), ([THRESHOLD, "dense"], {"dense": 1 / 1.25})]
        yield from parts(task, tables)

    batch, steps = (32, 2) if smoke else (256, 100)
    task = make_task("LeNet-300-100, density 0.1", lenet.build(10), (28, 28, 1), batch, steps)
    yield from parts(task, [(None, {})])
