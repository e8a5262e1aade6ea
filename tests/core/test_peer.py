"""Allocation and selection against jaxpruner's, on ResNet-50.

Golden numbers: tests/golden/make_jaxpruner.py. The weights have few distinct values, so that thresholds cut
through ties and their order is compared too. Leaves are pruned in other shapes, which changes nothing but
the time to compile: 54 leaves of 21 shapes take 25 s.
"""

import hashlib
import json
import math

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import giung2_ext.models
from giung2_ext.core import allocate, criteria, discovery, schedules, structure, trees
from giung2_ext.core import masks as masking

GOLDEN = fakes.REPOSITORY / "tests/golden/jaxpruner.json"
SEED = 0
DENSITIES = {"0.8": 0.2, "0.9": 0.1, "0.95": 0.05, "0.98": 0.02}


def find_kernels():
    """Shapes of torchvision's ResNet-50 without its biases and normalisations."""
    options = dict(num_classes=1000, padding="torch", head="biased")
    network = discovery.build(giung2_ext.models, "model", "resnet", **options)
    params = fakes.shapes_of(network, (224, 224, 3))[0]
    return {name: {"kernel": layer["kernel"]} for name, layer in params.items() if "kernel" in layer}


def draw_weights(kernels):
    """Sums of four 16-bit numbers, scaled as He et al. do: bell-shaped, and exact on every machine."""
    draw = np.random.PCG64(SEED)

    def one(leaf):
        raw = draw.random_raw(leaf.size)
        total = sum((raw >> np.uint64(16 * i) & np.uint64(0xFFFF)).astype(np.int32) for i in range(4))
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) / (65536 / math.sqrt(3))
        return ((total - 131070).astype(np.float32) * np.float32(scale)).reshape(leaf.shape)

    return jax.tree.map(one, kernels)


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def describe(masks):
    """The kept count of every leaf and the SHA-256 of its packed bits, in flattening order."""
    leaves = [np.asarray(leaf, bool) for leaf in trees.present(masks)]
    kept = [int(np.count_nonzero(leaf)) for leaf in leaves]
    return {"kept": kept, "total": sum(kept), "sha256": [sha256(masking.pack(leaf)) for leaf in leaves]}


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def dense(golden):
    masks = masking.dense(find_kernels(), "kernels")
    shapes = {name: list(leaf.shape) for name, leaf in trees.named_leaves(masks).items()}
    assert list(shapes.items()) == list(golden["leaves"].items())
    return masks


@pytest.fixture(scope="module")
def weights(golden, dense):
    drawn = draw_weights(dense)
    assert [sha256(leaf) for leaf in trees.present(drawn)] == golden["weights"]
    return drawn


prune = jax.jit(criteria.prune_magnitude)
prune_each = jax.jit(criteria.prune_magnitude_each)
LENGTHS = (1 << 16, 1 << 19, 2359296)  # the last is the largest leaf's
JOINED = 5


def prune_leaves(weights, counts):
    """`prune_magnitude_each` of flat leaves, each at the start of a vector whose rest is no candidate."""
    leaves = trees.present(weights)
    lengths = [next(length for length in LENGTHS if length >= leaf.size) for leaf in leaves]
    pairs = list(zip(leaves, lengths, strict=True))
    vectors = [np.pad(leaf.ravel(), (0, length - leaf.size)) for leaf, length in pairs]
    masks = prune_each(vectors, [np.arange(length) < leaf.size for leaf, length in pairs], counts)
    return [np.asarray(mask)[: leaf.size] for mask, leaf in zip(masks, leaves, strict=True)]


def prune_all(weights, count):
    """`prune_magnitude` of flat leaves, joined in their order to a few long ones."""
    leaves = [leaf.ravel() for leaf in trees.present(weights)]
    per = -(-len(leaves) // JOINED)
    vectors = [np.concatenate(leaves[i : i + per]) for i in range(0, len(leaves), per)]
    masks = prune(vectors, [np.ones(vector.size, bool) for vector in vectors], count)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return np.split(np.concatenate(masks), ends)


def compare_counts(golden, masks, how, sparsity, density):
    """Every leaf's size, jaxpruner's kept fraction of it in weights (not rounded), and our count."""
    sizes = np.array([leaf.size for leaf in trees.present(masks)])
    theirs = sizes * (1 - np.array(golden["sparsities"][how][sparsity]))
    ours = np.array(trees.present(allocate.layer_counts(masks, density, how)))
    return sizes, theirs, ours


@pytest.mark.parametrize("sparsity", DENSITIES)
def test_uniform_counts_are_jaxpruners_to_within_one_weight_of_every_leaf(golden, dense, sparsity):
    _, theirs, ours = compare_counts(golden, dense, "uniform", sparsity, DENSITIES[sparsity])
    assert np.abs(ours - theirs).max() < 1


@pytest.mark.parametrize("sparsity", DENSITIES)
def test_erk_of_the_same_budget_is_jaxpruners_to_within_one_weight_of_every_leaf(golden, dense, sparsity):
    sizes, theirs, _ = compare_counts(golden, dense, "erk", sparsity, DENSITIES[sparsity])
    budget = round(theirs.sum())  # a whole number but for its rounding errors
    _, _, ours = compare_counts(golden, dense, "erk", sparsity, (budget + 0.5) / sizes.sum())
    assert ours.sum() == budget
    assert np.abs(ours - theirs).max() < 1
    assert ((ours == sizes) == (theirs == sizes)).all()  # the same leaves are dense


@pytest.mark.parametrize("sparsity", DENSITIES)
def test_erk_of_the_same_density_differs_by_jaxpruners_larger_budget_alone(golden, dense, sparsity):
    # it rounds the zeros of every leaf down before it sums them, so it keeps up to a weight a leaf more
    sizes, theirs, ours = compare_counts(golden, dense, "erk", sparsity, DENSITIES[sparsity])
    more = theirs.sum() - ours.sum()
    assert 0 <= more <= len(sizes)
    sparse = theirs < sizes
    assert (ours == sizes)[~sparse].all()
    assert (np.abs(ours - theirs)[sparse] < 1 + more * theirs[sparse] / theirs[sparse].sum()).all()


@pytest.mark.parametrize("sparsity", ["0.8", "0.9"])
@pytest.mark.parametrize("how", ["uniform", "erk"])
def test_masks_of_every_leaf_are_jaxpruners_bit_for_bit(golden, weights, how, sparsity):
    # at its counts: it rounds each to the nearest, so they do not sum to the budget, as ours do
    found = golden["masks"][how][sparsity]
    assert describe(prune_leaves(weights, [np.int32(kept) for kept in found["kept"]])) == found


@pytest.mark.parametrize("sparsity", ["0.8", "0.9"])
@pytest.mark.parametrize("how", ["global", "normalized"])
def test_masks_of_one_global_budget_are_jaxpruners_bit_for_bit(golden, dense, weights, how, sparsity):
    found = golden["masks"][how][sparsity]
    if how == "normalized":  # its default: by the layer's norm
        norms = jax.tree.unflatten(jax.tree.structure(dense), golden["norms"])
        weights = jax.tree.map(lambda w, norm: w / (np.float32(norm) + np.float32(1e-8)), weights, norms)
    assert describe(prune_all(weights, found["total"])) == found
    # its count is a float32 product, so of 25,502,912 weights .1 are 2,550,292; floor(2,550,291.2) is ours
    ours = allocate.keep_count(DENSITIES[sparsity], masking.size(dense))
    assert found["total"] - ours == {"0.8": 0, "0.9": 1}[sparsity]


def test_many_of_the_thresholds_cut_through_ties(golden, weights):
    cut = 0
    for kept, leaf in zip(golden["masks"]["uniform"]["0.9"]["kept"], trees.present(weights), strict=True):
        following, last = np.partition(np.abs(leaf).ravel(), [-kept - 1, -kept])[[-kept - 1, -kept]]
        cut += last == following
    assert cut == 17


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_patterns_along_the_inputs_are_the_peers_but_for_the_order_of_ties(golden, weights, pattern):
    """It groups along outputs unless told otherwise, and of equal weights keeps the last, we the first."""
    [stored] = [entry for entry in golden["patterns"][pattern] if entry["axis"] == -2]
    drawn, favourites = trees.named_leaves(weights), jax.jit(structure.favourites, static_argnums=1)
    for name, digest in zip(golden["pattern_leaves"], stored["sha256"], strict=True):
        turned = jnp.asarray(np.flip(np.abs(drawn[name]), -2))
        mask = np.flip(np.asarray(favourites(turned, pattern)), -2)
        assert sha256(masking.pack(mask)) == digest


def test_the_cubic_schedule_is_the_peers_a_step_earlier(golden):
    """It counts a step from its end (t + 1), Zhu & Gupta from its beginning."""
    plan = golden["schedule"]
    for step, sparsity in zip(plan["steps"], plan["sparsities"], strict=True):
        done = min(max(step + 1 - 10_000, 0) / 15_000, 1)
        density = 0.2 + 0.8 * schedules.excess("cubic", 0.2, done)
        assert 1 - density == pytest.approx(sparsity, abs=2e-7)
