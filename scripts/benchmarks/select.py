"""The mask that keeps the 80% largest of ResNet-50's 23,454,912 convolution weights, exactly.

Rivals give the same mask: `jax.lax.top_k` and a full argsort over the flattened magnitudes, their
first k places set; the smallest index wins a tie in all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import criteria, masks, select
from giung2_ext.core.allocate import keep_count
from giung2_ext.models import resnet, resnet_cifar
from giung2_ext.training.state import init_variables, seed_key

AIMS = {"argsort": 80.0, "lax.top_k": 40.0}


def flat_mask(order, k, size):
    return jnp.zeros(size, bool).at[order[:k]].set(True)


def make(smoke):
    model = resnet_cifar.build(10) if smoke else resnet.build(1000)
    image = (32, 32, 3) if smoke else (224, 224, 3)
    params = jax.jit(lambda key: init_variables(model, key, image)[0])(seed_key(0))
    dense = masks.dense(params, "conv")
    weights = [leaf for leaf, mask in zip(*map(leaves, (params, dense)), strict=True) if mask is not None]
    size = sum(leaf.size for leaf in weights)
    k = keep_count(0.8, size)
    flat = jax.block_until_ready(jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in weights]))

    ours = jax.jit(criteria.prune_magnitude)
    halving = jax.jit(lambda keys, k: select._by_halving(keys, k).key)
    keys = jax.jit(lambda ws: [select.order_keys(jnp.abs(w)) for w in ws])(weights)
    by_argsort = jax.jit(lambda x: flat_mask(jnp.argsort(-x, stable=True), k, size))
    by_top_k = jax.jit(lambda x: flat_mask(jax.lax.top_k(x, k)[1], k, size))

    expected = np.asarray(by_argsort(flat))
    found = [mask for mask in leaves(ours(params, dense, k)) if mask is not None]
    assert (np.concatenate([np.asarray(mask).reshape(-1) for mask in found]) == expected).all()
    assert (np.asarray(by_top_k(flat)) == expected).all()
    assert expected.sum() == k
    contenders = {
        "ours, mask of the tree": lambda: jax.block_until_ready(ours(params, dense, k)),
        "argsort": lambda: by_argsort(flat).block_until_ready(),
        "lax.top_k": lambda: by_top_k(flat).block_until_ready(),
        "32 halvings, threshold alone": lambda: halving(keys, k).block_until_ready(),
    }
    note = f"{size:,} scores in {len(weights)} leaves, {k:,} kept; all masks are equal"
    return contenders, AIMS, [note], ("scores", size)


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
