"""A training step with masks at density 0.2 against the same step without masks.

ResNet-20 at batch 128 in float32 on a CPU; on an accelerator ResNet-50 at batch 256 in bfloat16. Both
start from the same masked weights and see the same batch, so they have the same loss; masks change
what is stored, not how much is computed. A dense step 1.03 (1.01) times as fast as ours is the aim.
"""

import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import criteria, masks, schedules
from giung2_ext.core.allocate import keep_count
from giung2_ext.core.method import Method
from giung2_ext.methods import ticket
from giung2_ext.models import resnet, resnet_cifar
from giung2_ext.training.optimizers import make_optimizer
from giung2_ext.training.state import init_variables, make_state, seed_key
from giung2_ext.training.step import make_step

DENSE = Method(  # no masks at all
    init=lambda key, params, masks: (params, ()), weights=lambda t, s: t, masks=lambda t, s: None
)


def start(model, image, density=0.2):
    """Masked weights, statistics and masks to start from."""
    params, statistics = jax.jit(lambda key: init_variables(model, key, image))(seed_key(0))
    statistics = statistics | {"image_stats": {"m": jnp.full(3, 0.5), "s": jnp.full(3, 0.25)}}
    every = masks.dense(params, "conv")
    kept = criteria.prune_magnitude(params, every, keep_count(density, masks.size(every)))
    return masks.apply(kept, params), statistics, kept


def random_batch(image, batch, classes):
    draw = np.random.default_rng(0)
    return {
        "images": jnp.asarray(draw.integers(0, 256, (batch, *image), dtype=np.uint8)),
        "labels": jnp.asarray(draw.integers(0, classes, batch), jnp.int32),
        "valid": jnp.ones(batch, bool),
    }


def stepper(model, method, params, statistics, kept, data, steps):
    """Trains `steps` steps a call on a state of its own, which it donates; gives the last loss."""
    optimizer = make_optimizer("sgd", 0.9, 1e-4)
    step, _ = make_step(model, method, optimizer, schedules.constant(0.01))
    run = jax.jit(step, donate_argnums=0)
    params, statistics, kept = jax.tree.map(jnp.copy, (params, statistics, kept))
    state = make_state(method, optimizer, seed_key(0), params, kept, statistics)

    def advance():
        nonlocal state
        for _ in range(steps):
            state, metrics = run(state, data)
        return metrics.loss.block_until_ready() / len(data["labels"])

    return advance


def make(smoke, data_root):
    accelerator = jax.default_backend() != "cpu"
    if accelerator and not smoke:
        model, image, batch, classes, steps = resnet.build(1000, jnp.bfloat16), (224, 224, 3), 256, 1000, 20
    else:
        model = resnet_cifar.build(10, depth=8, planes=4) if smoke else resnet_cifar.build(10)
        image, batch, classes, steps = (32, 32, 3), 8 if smoke else 128, 10, 1
    params, statistics, kept = start(model, image)
    data = random_batch(image, batch, classes)

    def pair(steps):
        methods = ticket.build(), DENSE
        return [stepper(model, method, params, statistics, kept, data, steps) for method in methods]

    np.testing.assert_allclose(*(run() for run in pair(1)), rtol=1e-2 if accelerator else 1e-6)
    ours, dense = pair(steps)
    contenders = {"with masks": ours, "dense": dense}
    aims = {"dense": 1 / (1.01 if accelerator else 1.03)}
    notes = [f"{steps} step(s) of {batch} a turn; first losses are equal"]
    return [(contenders, aims, notes, ("images", steps * batch))]
