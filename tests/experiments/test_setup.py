"""What a config says reaches the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import parse
from etils import epath
from fakes import REPOSITORY

from giung2_ext.core import losses, trees
from giung2_ext.experiments.settling import settled
from giung2_ext.experiments.setup import make_setup
from giung2_ext.experiments.start import start_state
from giung2_ext.training.optimizers import edit_slots
from giung2_ext.training.state import DATA
from giung2_ext.training.step import network

GROUPED = (
    f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke",
    *(
        "--seed=3",
        "--config.precision=float32",
        "--mesh=data:1",
        "--optim_ni=10",
        "--batch_size=24",
        "--config.method.name=rpg",
    ),
    *("--config.method.density=0.5", "--config.method.every=1", "--config.method.ramp=0.5"),
    *("--config.method.stop=0.9", "--config.method.rank_weight=0", "--config.method.group=8"),
    *("--config.masks.criterion=random", "--config.masks.density=0.4", "--config.model.hidden=24,16"),
)


def test_a_group_of_the_config_grows_by_the_mean_of_its_groups_absolute_gradients(tmp_path):
    config = settled(epath.Path(tmp_path), parse(*GROUPED))
    setup = make_setup(config, 1)
    state, _ = start_state(config, setup)
    feed, key = setup.data.feed, jax.random.fold_in(state.key, DATA)
    batch = feed.batch(feed.arrays, feed.order(key, 0), key, state.step)

    @jax.jit
    def gradient(images, labels):
        def loss(weights):
            logits, _ = network(setup.model, weights, state.statistics, images, train=True)
            return losses.cross_entropy(logits, labels, 0.0).mean()

        return jax.grad(loss)(setup.method.weights(state.trainable, state.method))

    parts = [gradient(batch["images"][i : i + 8], batch["labels"][i : i + 8]) for i in (0, 8, 16)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *parts)
    pair = jax.tree.map(lambda *g: sum(map(jnp.abs, g)) / 3, *parts)

    def masks_by(score):
        given = (state.trainable, (), state.method, (mean, score), state.step, None, edit_slots)
        return trees.present(jax.jit(setup.method.update, static_argnums=6)(*given)[2].masks)

    expected, of_batch = masks_by(pair), masks_by(jax.tree.map(jnp.abs, mean))
    before = [np.asarray(mask) for mask in trees.present(setup.method.masks(state.trainable, state.method))]
    with setup.data.open(config.seed) as data:
        after, *_ = setup.program.update(state, data)
    found = trees.present(setup.method.masks(after.trainable, after.method))
    for mask, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)
    for other in (of_batch, before):  # it is neither what one group would give nor what was there
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(found, other, strict=True))
