"""Laws that every method, model and source found in the package must keep, whoever wrote it."""

import functools
import io
import pickle

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fakes import (
    CLASSES,
    IMAGE,
    fresh_variables,
    make_batch,
    make_bench,
    make_method,
    make_model,
    random_variables,
    script_module,
    shapes_of,
)
from PIL import Image

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.data.formats import shards
from giung2_ext.data.formats.example import make_example
from giung2_ext.data.source import Split
from giung2_ext.data.transforms import PIPELINES

METHODS = discovery.names(giung2_ext.methods)
FROZEN = [name for name in METHODS if make_method(name).frozen]
MODELS = discovery.names(giung2_ext.models)
SOURCES = discovery.names(giung2_ext.data.sources)
IMAGES = np.random.default_rng(1).normal(size=(16, *IMAGE)).astype(np.float32)
OPTIMIZERS = [("sgd", 0.9, 5e-4, 0.5), ("adam", 0.9)]


def all_leaves(tree):
    return jax.tree.leaves(tree, is_leaf=trees.is_none)


def leaves_off_mask(masks, tree):
    return [
        np.asarray(leaf)[~np.asarray(mask)]
        for mask, leaf in zip(all_leaves(masks), all_leaves(tree), strict=True)
        if mask is not None
    ]


@functools.cache
def trained(name, optimizer):
    """A bench and its states after each of 14 steps; laws only look at them."""
    bench = make_bench(name, optimizer=optimizer)
    return bench, tuple(bench.run(14))


def test_there_is_something_to_check():
    assert {"ticket", "rigl", "set", "snfs", "gradual", "ste", "rpg"} <= set(METHODS)
    assert {"jackpots", "multiprize", "cycles"} <= set(METHODS)
    assert {"lenet", "lenet5", "alexnet", "convnet", "conv", "vgg"} <= set(MODELS)
    assert {"resnet", "resnet_cifar", "vit"} <= set(MODELS)
    assert {"digits", "arrays"} <= set(SOURCES)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_from_the_masks_and_weights_it_is_given(name, key):
    method = make_method(name)
    params, _ = fresh_variables(make_model(), key, IMAGE)
    bench = make_bench(name)
    trainable, state = jax.jit(method.init)(key, params, bench.masks)
    assert jax.tree.all(jax.tree.map(np.array_equal, method.masks(trainable, state), bench.masks))
    seen = method.weights(trainable, state)
    for mask, weight, found in zip(*map(all_leaves, (bench.masks, params, seen)), strict=True):
        expected = np.asarray(weight) if mask is None else np.where(mask, weight, 0)
        if mask is not None and name == "multiprize":  # signs, and a gain for each layer
            gain = np.abs(weight[mask]).mean()
            np.testing.assert_allclose(found, np.where(mask, np.sign(weight) * gain, 0), rtol=1e-6)
        else:
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["clipped", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_weights_are_exactly_zero_off_the_mask_and_density_changes_only_until_it_has_settled(
    name, optimizer
):
    bench, states = trained(name, optimizer)
    settled = bench.method.settled or (lambda step: True)
    counts, was_settled = jax.device_get(masking.counts(bench.masks)), settled(0)
    together = name == "ste"  # one threshold for all layers moves counts between them
    counts = sum(jax.tree.leaves(counts)) if together else counts
    for state in states:
        masks = bench.masks_of(state)
        assert all((off == 0).all() for off in leaves_off_mask(masks, bench.weights(state)))
        now = jax.device_get(masking.counts(masks))
        if together:
            now = sum(jax.tree.leaves(now))
        assert now == counts if was_settled else jax.tree.all(jax.tree.map(np.less_equal, now, counts))
        counts, was_settled = now, settled(int(state.step))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bench.weights(state)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["clipped", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_is_zero_off_the_mask_too(name, optimizer):
    if make_method(name).latent:
        pytest.skip("trains scores or dense weights, which live on where the mask is off; 2026-11-27")
    bench, states = trained(name, optimizer)
    for state in states:
        masks = bench.masks_of(state)
        assert all((off == 0).all() for off in leaves_off_mask(masks, state.trainable))
        slots = [s for s in state.optimizer if hasattr(s, "trace") or hasattr(s, "mu")]
        assert slots
        for slot in slots:
            for tree in [slot.trace] if hasattr(slot, "trace") else [slot.mu, slot.nu]:
                assert all((off == 0).all() for off in leaves_off_mask(masks, tree))


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_method_changes_no_prunable_weight(name):
    bench = make_bench(name)
    *_, state = bench.run(5)
    both = trees.map_present(jnp.logical_and, bench.masks, bench.masks_of(state))
    start, now = bench.weights(bench.state), bench.weights(state)
    for mask, before, after in zip(*map(all_leaves, (both, start, now)), strict=True):
        if mask is None:
            assert np.array_equal(before, after)
            continue
        ratio = np.unique(after[mask] / before[mask])
        assert mask.any()
        assert len(ratio) == 1 if name == "multiprize" else ratio.tolist() == [1]  # its gain is of all kept


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_the_batch_it_is_shown(name):
    bench = make_bench(name, optimizer=("sgd", 0.9), rate=0.1)
    first = last = None
    state = bench.state
    for _ in range(60):
        due = bench.method.due is not None and bench.method.due(int(state.step))
        state, metrics, *_ = (bench.update if due else bench.step)(state, make_batch())
        loss = float(metrics.loss / metrics.seen)
        first, last = loss if first is None else first, loss
    assert last < 0.8 * first


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_no_config_and_refuses_options_it_lacks(name):
    with pytest.raises(Refusal, match="takes no option 'nonsense'"):
        make_method(name, nonsense=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_maps_images_to_logits_and_calls_its_classifier_cls(name):
    model = make_model(name)
    params, statistics = shapes_of(model)
    logits = jax.eval_shape(model.apply, {"params": params, **statistics}, jnp.zeros((2, *IMAGE)))
    assert logits.shape == (2, CLASSES)
    assert any(path.startswith("cls") for path in trees.named_leaves(params))
    assert masking.size(masking.dense(params, "body")) < masking.size(masking.dense(params, "kernels"))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_model_gets_a_gradient(name):
    bench = make_bench("ticket", model=name, masks=lambda params: masking.dense(params, "kernels"))
    *_, state = bench.run(4)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), bench.state.trainable, state.trainable)
    assert all(jax.tree.leaves(moved)), trees.named_leaves(moved)


def logits_in(model, variables, images, train):
    """Logits, and in training the new statistics too."""
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"] if train else False)
    found = jax.jit(apply)(variables, images)
    return found if train else (found, {})


@functools.cache
def exact_logits(name, train):
    model = make_model(name)
    return logits_in(model, random_variables(model), IMAGES, train)[0]


def products(jaxpr):
    """The operand types of every convolution and matrix product, wherever they are nested."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield tuple(operand.aval.dtype for operand in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("train", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize(("dtype", "digits"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
@pytest.mark.parametrize("name", MODELS)
def test_a_models_body_computes_in_its_type_but_what_it_keeps_and_returns_is_float32(
    name, dtype, digits, train
):
    model = make_model(name, dtype=dtype)
    variables = random_variables(model)
    logits, statistics = logits_in(model, variables, IMAGES, train)
    kept = jax.tree.leaves((variables, statistics, logits))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype(jnp.float32)}
    assert all(jnp.isfinite(leaf).all() for leaf in kept)
    expected = exact_logits(name, train)
    off = float(jnp.sqrt(jnp.mean((logits - expected) ** 2)) / jnp.std(expected))
    assert digits / 8 < off < 32 * digits


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", MODELS)
def test_every_product_of_a_model_but_its_classifiers_is_in_its_type(name, dtype):
    model = make_model(name, dtype=dtype)
    apply = functools.partial(model.apply, train=False)
    jaxpr = jax.make_jaxpr(apply)(random_variables(model), jnp.ones((2, *IMAGE)))
    *body, classifier = products(jaxpr.jaxpr)
    assert len(body) >= 2
    assert set(body) == {(jnp.dtype(dtype),) * 2}
    assert classifier == (jnp.dtype(jnp.float32),) * 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_a_model_but_its_classifier_returns_its_type(name, dtype):
    model = make_model(name, dtype=dtype)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    _, found = jax.eval_shape(apply, random_variables(model), jnp.ones((2, *IMAGE)))
    types = {path: leaf.dtype for path, leaf in trees.named_leaves(found["intermediates"]).items()}
    in_float32 = {path for path, type_ in types.items() if type_ == jnp.float32}
    assert in_float32 == {"cls/__call__/0", "__call__/0"}
    assert {types[path] for path in types.keys() - in_float32} == {jnp.dtype(dtype)}


@pytest.fixture(scope="module")
def imagenet_tree(tmp_path_factory):
    """All sets of the family, small."""
    small = script_module("make_imagenet")
    root = small.make(tmp_path_factory.mktemp("imagenet"), count=2)
    small.write(root / "imagenet-c/fog/1", small.LABELS, 1)
    folder, name = epath.Path(root / "imagenet2012_real/1.0.0"), "imagenet2012_real"
    folder.mkdir(parents=True)
    content = {
        "image": small.picture(3, 0),
        "original_label": 3,
        "real_label": (3, 5),
        "file_name": b"a.JPEG",
    }
    shards.write(shards.place(folder, name, "validation", 0, 1), 1, [make_example(content)])
    shards.finish(folder, name, None, {"validation": [1]}, "")
    (folder / "features.json").unlink()  # it would tell of other features than these
    return root


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    """The small sets as TFDS folders have them, smaller still."""
    root = epath.Path(tmp_path_factory.mktemp("small"))
    for name, side in (("mnist", 28), ("fashion_mnist", 28), ("cifar100", 32)):
        folder, picture = root / name / "3.0.1", io.BytesIO()
        folder.mkdir(parents=True)
        Image.new("L", (side, side), 9).save(picture, "PNG")
        for split, size in (("train", 30), ("test", 10)):
            records = [make_example({"image": picture.getvalue(), "label": i % 10}) for i in range(size)]
            shards.write(shards.place(folder, name, split, 0, 1), size, records)
        shards.finish(folder, name, None, {"train": [30], "test": [10]}, "")
        (folder / "features.json").unlink()  # it would tell of other features than these
    return root


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_its_splits_in_the_stored_types(
    name, image_arrays, cifar10_files, imagenet_tree, small_tree
):
    options = {
        "arrays": dict(root=str(image_arrays), num_classes=3, holdout=20),
        "cifar10": dict(root=str(cifar10_files), holdout=20),
        **{key: dict(root=str(small_tree), holdout=20) for key in ("mnist", "fashion_mnist", "cifar100")},
        "imagenet2012": dict(root=str(imagenet_tree), holdout=20),
        "imagenet_c": dict(root=str(imagenet_tree), variant="fog_1"),
    }.get(name, dict(root=str(imagenet_tree)) if name.startswith("imagenet") else {})
    source = discovery.build(giung2_ext.data.sources, "data source", name, **options)
    if "train" in source.splits:
        assert {"holdout", "test"} <= set(source.splits)
    else:
        assert set(source.splits) == {"test"}  # a set that is only for testing
    assert len(source.mean) == len(source.std) == source.image_shape[-1]
    for key, split in source.splits.items():
        assert len(split) > 0
        labels = {split[i].label for i in range(len(split))}
        assert labels <= set(source.classes or range(source.num_classes))
        if isinstance(split, Split):
            assert split.images.dtype in (np.uint8, np.float32)
            assert split.labels.dtype == np.int32
            assert len(split.images) == len(split.labels)
        else:
            assert isinstance(split[0].image, bytes)
            assert split[0].name.endswith(".JPEG")
            assert source.pipeline(key) in PIPELINES
            assert source.about[key]
            pickle.loads(pickle.dumps(split))[0]  # it can be sent to a worker process
    with pytest.raises(Refusal, match="did you mean 'test'"):
        source.split("tets")
