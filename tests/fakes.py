"""Small real things to train: a network, data, masks, and a bench that steps any method by hand."""

import importlib.util
import os
import pathlib
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import allocate, criteria, discovery, schedules, select, trees
from giung2_ext.core import masks as masking
from giung2_ext.training import loop
from giung2_ext.training import state as states
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.step import make_step

REPOSITORY = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(os.environ.get("GIUNG2_EXT_DATA", REPOSITORY.parent / "shared/data"))
"""Where real data is, if it is"""
IMAGE = (8, 8, 1)
CLASSES = 5
SMALL = {
    "lenet": dict(hidden=(16, 12)),
    "alexnet": dict(width=1 / 16),
    "convnet": dict(widths=(4, 6)),
    "resnet": dict(depth=18, planes=(16, 32, 64, 128)),
    "resnet_cifar": dict(depth=8, planes=4),
    "vgg": dict(plan="small", width=1 / 32, head="flat"),
    "vit": dict(size="Ti", depth=2, patch=4),
    "wide_resnet": dict(depth=10, planes=4),
}


def make_batch(seed=0, size=24, image=IMAGE):
    draw = np.random.default_rng(seed)
    return {
        "images": jnp.asarray(draw.integers(0, 256, (size, *image), dtype=np.uint8)),
        "labels": jnp.asarray(draw.integers(0, CLASSES, size), jnp.int32),
        "valid": jnp.ones(size, bool),
    }


def make_model(name="lenet", **options):
    options = {**SMALL.get(name, {}), **options}
    return discovery.build(giung2_ext.models, "model", name, num_classes=CLASSES, **options)


fresh_variables = jax.jit(states.init_variables, static_argnums=(0, 2))
"""`init_variables`, compiled once for every network: run by itself each layer would be compiled alone."""


def shapes_of(network, image=IMAGE):
    """Parameters and remaining collections as shapes and types: nothing is computed, even at full size."""
    return jax.eval_shape(lambda: states.init_variables(network, jax.random.key(0), image))


def random_variables(network, image=IMAGE, seed=0):
    """Variables all drawn anew: no head of 0, scale of 0 or 1, or mean of 0 hides a layer."""
    draw = np.random.default_rng(seed)

    def leaf(path, shape):
        if path[-1].key in ("scale", "var"):
            drawn = draw.uniform(0.5, 1.5, shape.shape)
        else:  # a kernel keeps the size of what passes through a ReLU
            fan_in = np.prod(shape.shape[:-1]) if path[-1].key == "kernel" else 50
            drawn = draw.normal(0, (2 / fan_in) ** 0.5, shape.shape)
        return jnp.asarray(drawn, shape.dtype)

    params, rest = shapes_of(network, image)
    return jax.tree_util.tree_map_with_path(leaf, {"params": params, **rest})


def windows(x, size, stride, pads, fill=0.0):
    """What a square convolution or pooling sees, in plain NumPy: [B, rows, columns, C, size, size]."""
    x = np.pad(x, [(0, 0), pads, pads, (0, 0)], constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return seen[:, ::stride, ::stride]


def convolve(x, kernel, stride, pads):
    """A square convolution with an HWIO kernel, in plain NumPy."""
    seen = windows(x, kernel.shape[0], stride, pads)
    return np.tensordot(seen, np.asarray(kernel, np.float64), [(4, 5, 3), (0, 1, 2)])


def make_method(name, **options):
    swapping, ramped = dict(every=3, stop=12), dict(density=0.1, end=9, every=3)
    own = {
        **dict.fromkeys(("rigl", "set", "snfs"), swapping),
        **dict.fromkeys(("gradual", "ste"), ramped),
        "rpg": dict(density=0.1, every=3, ni=14, ramp=0.7, stop=0.95),
        "cycles": dict(every=3, percent=20.0, ni=14),
    }
    options = options or own.get(name, {})
    return discovery.build(giung2_ext.methods, "method", name, **options)


def kernels(tree):
    """The kernel leaves of a parameter-like tree, in flattening order."""
    return [leaf for name, leaf in trees.named_leaves(tree).items() if name.endswith("kernel")]


def start_masks(params, density=0.4, rule="kernels", seed=1):
    """Random masks of exactly floor(density * n) per ERK."""
    masks = masking.dense(params, rule)
    return _draw_masks(jax.random.key(seed), allocate.layer_counts(masks, density, "erk"), masks)


def scattered(params, density=0.4, seed=1, rule="kernels"):
    """Random masks of about this density, drawn by NumPy: nothing to compile."""
    draw = np.random.default_rng(seed)
    return trees.map_present(lambda m: draw.random(m.shape) < density, masking.dense(params, rule))


@jax.jit  # one program, not one for each of its operations
def _draw_masks(key, counts, masks):
    return select.top_k_each(criteria.random(key, masks), counts, masks)


class Bench(NamedTuple):
    model: Any
    method: Any
    state: Any
    step: Any
    update: Any
    masks: Any

    def run(self, steps, state=None, make=make_batch):
        """Yields the state after every step, updates included; `make(step)` gives the batches."""
        state = self.state if state is None else state
        for _ in range(steps):
            now = int(state.step)
            due = self.method.due is not None and self.method.due(now)
            state, *_ = (self.update if due else self.step)(state, make(now))
            yield state

    def weights(self, state):
        return jax.jit(self.method.weights)(state.trainable, state.method)

    def masks_of(self, state):
        return jax.jit(self.method.masks)(state.trainable, state.method)


def make_bench(
    method="ticket",
    model="lenet",
    optimizer=("sgd", 0.9, 5e-4),
    rate=0.05,
    masks=start_masks,
    precision=None,
    **step,
):
    """`precision` is the model's own where it is not given; `step` is for make_step."""
    network = make_model(model) if isinstance(model, str) else model
    network = network if precision is None else network.clone(dtype=getattr(jnp, precision))
    method = make_method(method) if isinstance(method, str) else method
    optimizer = make_optimizer(*optimizer) if type(optimizer) is tuple else optimizer
    key = states.seed_key(0)
    params, statistics = fresh_variables(network, key, IMAGE)
    statistics["image_stats"] = {"m": jnp.full(1, 0.5), "s": jnp.full(1, 0.25)}
    chosen = masks(params)
    kinds = dict(scaled=precision == "float16", averaged=step.get("average") is not None)
    state = states.make_state(method, optimizer, key, params, chosen, statistics, **kinds)
    schedule = rate if callable(rate) else schedules.constant(rate)
    pair = make_step(network, method, optimizer, schedule, **step)
    return Bench(network, method, state, *map(jax.jit, pair), chosen)


class Stopped(Exception):
    """A process that died."""


def dying_at(step):
    """A `run_loop` that dies, as far as the run can tell, when metrics of `step` come in."""
    whole = loop.run_loop

    def dying(*args, on_metrics, **options):
        def watch(now, metrics):
            if now >= step:
                raise Stopped
            on_metrics(now, metrics)

        return whole(*args, on_metrics=watch, **options)

    return dying


def tensorboard_events(folder):
    """{(name, step): value} of a run's event files, in the order in which they were begun."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            content = content[12 + size + 4 :]
    return found


def script_module(name):
    """scripts/NAME.py, imported."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample_jpegs():
    """Real JPEGs of ImageNet, as bytes; a test that wants them is skipped where they are not."""
    files = sorted((SHARED / "imagenet-sample").glob("*/*.JPEG"))
    if not files:
        pytest.skip(f"no imagenet-sample in {SHARED}; name its folder with GIUNG2_EXT_DATA (2026-11-21)")
    return [file.read_bytes() for file in files]


def python2_batch(label, pixels, labels):
    """What Python 2's cPickle wrote for a batch of CIFAR-10: protocol 2, names and pixels as its `str`."""

    def text(string):
        return b"U" + bytes([len(string)]) + string

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    content = b"\x89T" + struct.pack("<I", pixels.nbytes) + pixels.tobytes()
    items = text(b"batch_label") + text(label)
    items += text(b"labels") + b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    items += text(b"data") + array + b"(K\x01" + shape + dtype + content + b"tb"
    return b"\x80\x02}(" + items + b"u."
