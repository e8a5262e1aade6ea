"""The mask that keeps the 80% largest of ResNet-50's 23,454,912 convolution weights, exactly.

Rivals get the magnitudes flat and give the same mask: a full argsort whose first k places are set, and
every score from the k-th largest up, where that is found by `jax.lax.top_k` (the original suite's rule,
which keeps all ties), by `jnp.sort`, or on a CPU by `numpy.partition`. The cut is where no tie is split.
"""

import jax
import jax.numpy as jnp
import numpy as np

from giung2_ext.core import criteria, masks
from giung2_ext.core.allocate import keep_count
from giung2_ext.models import resnet, resnet_cifar
from giung2_ext.training.state import init_variables, seed_key

AIMS = {"argsort": 80.0, "lax.top_k": 40.0}


def make(smoke, data_root):
    model = resnet_cifar.build(10) if smoke else resnet.build(1000)
    image = (32, 32, 3) if smoke else (224, 224, 3)
    params = jax.jit(lambda key: init_variables(model, key, image)[0])(seed_key(0))
    dense = masks.dense(params, "conv")
    weights = [leaf for leaf, mask in zip(*map(leaves, (params, dense)), strict=True) if mask is not None]
    size = sum(leaf.size for leaf in weights)
    flat = jax.block_until_ready(jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in weights]))
    host = np.asarray(flat)
    cut = size - keep_count(0.8, size)
    k = int((host >= np.partition(host, cut)[cut]).sum())  # with all ties, so that no rival must cut them

    ours = jax.jit(criteria.prune_magnitude)
    by_argsort = jax.jit(lambda x: jnp.zeros(size, bool).at[jnp.argsort(-x, stable=True)[:k]].set(True))
    by_top_k = jax.jit(lambda x: x >= jax.lax.top_k(x, k)[0][-1])
    by_sort = jax.jit(lambda x: x >= jnp.sort(x)[size - k])
    rivals = {
        "argsort": lambda: by_argsort(flat).block_until_ready(),
        "lax.top_k": lambda: by_top_k(flat).block_until_ready(),
        "jnp.sort": lambda: by_sort(flat).block_until_ready(),
    }
    if jax.default_backend() == "cpu":
        rivals["numpy.partition"] = lambda: host >= np.partition(host, size - k)[size - k]

    found = [mask for mask in leaves(ours(params, dense, k)) if mask is not None]
    expected = np.concatenate([np.asarray(mask).reshape(-1) for mask in found])
    assert expected.sum() == k
    for name, rival in rivals.items():
        assert (np.asarray(rival()) == expected).all(), name
    note = f"{size:,} scores in {len(weights)} leaves, {k:,} kept; all masks are equal"
    tree = {"ours": lambda: jax.block_until_ready(ours(params, dense, k))}
    return [(tree | rivals, AIMS, [note], ("scores", size))]


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
