"""Laws that every method, model and source found in the package must keep, whoever wrote it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CLASSES, IMAGE, make_batch, make_bench, make_method, make_model

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.training import state as states

METHODS = discovery.names(giung2_ext.methods)
MODELS = discovery.names(giung2_ext.models)
SOURCES = discovery.names(giung2_ext.data.sources)
OPTIMIZERS = [("sgd", 0.9, 5e-4), ("sgd", 0.9, 5e-4, 0.5), ("adam", 0.9)]


def leaves_off_mask(masks, tree):
    return [
        np.asarray(leaf)[~np.asarray(mask)]
        for mask, leaf in zip(
            jax.tree.leaves(masks, is_leaf=trees.is_none),
            jax.tree.leaves(tree, is_leaf=trees.is_none),
            strict=True,
        )
        if mask is not None
    ]


def test_there_is_something_to_check():
    assert {"ticket", "rigl", "jackpots"} <= set(METHODS)
    assert {"lenet", "convnet"} <= set(MODELS)
    assert {"digits", "arrays"} <= set(SOURCES)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_from_the_masks_and_weights_it_is_given(name, key):
    method = make_method(name)
    params, _ = states.init_variables(make_model(), key, IMAGE)
    bench = make_bench(name)
    trainable, state = method.init(key, params, bench.masks)
    assert jax.tree.all(jax.tree.map(np.array_equal, method.masks(trainable, state), bench.masks))
    expected = masking.apply(bench.masks, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, method.weights(trainable, state), expected))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "clipped", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_weights_are_exactly_zero_off_the_mask_and_density_never_changes(name, optimizer):
    bench = make_bench(name, optimizer=optimizer)
    counts = jax.device_get(masking.counts(bench.masks))
    for state in bench.run(14):
        masks = bench.masks_of(state)
        assert all((off == 0).all() for off in leaves_off_mask(masks, bench.weights(state)))
        assert jax.device_get(masking.counts(masks)) == counts
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bench.weights(state)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "clipped", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_is_zero_off_the_mask_too(name, optimizer):
    bench = make_bench(name, optimizer=optimizer)
    if jax.tree.structure(bench.state.trainable) != jax.tree.structure(bench.weights(bench.state)):
        pytest.skip("trains scores, one for every weight that can be pruned; 2026-11-21")
    for state in bench.run(14):
        masks = bench.masks_of(state)
        assert all((off == 0).all() for off in leaves_off_mask(masks, state.trainable))
        slots = [s for s in state.optimizer if hasattr(s, "trace") or hasattr(s, "mu")]
        assert slots
        for slot in slots:
            for tree in [slot.trace] if hasattr(slot, "trace") else [slot.mu, slot.nu]:
                assert all((off == 0).all() for off in leaves_off_mask(masks, tree))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_the_batch_it_is_shown(name):
    bench = make_bench(name, optimizer=("sgd", 0.9), rate=0.1)
    first = last = None
    state = bench.state
    for _ in range(60):
        due = bench.method.due is not None and bench.method.due(int(state.step))
        state, metrics = (bench.update if due else bench.step)(state, make_batch())
        loss = float(metrics.loss / metrics.seen)
        first, last = loss if first is None else first, loss
    assert last < 0.8 * first


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_no_config_and_refuses_options_it_lacks(name):
    with pytest.raises(Refusal, match="takes no option 'nonsense'"):
        make_method(name, nonsense=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_maps_images_to_logits_and_calls_its_classifier_cls(name, key):
    model = make_model(name)
    params, statistics = states.init_variables(model, key, IMAGE)
    logits = model.apply({"params": params, **statistics}, jnp.zeros((2, *IMAGE)), train=False)
    assert logits.shape == (2, CLASSES)
    assert any(path.startswith("cls") for path in trees.named_leaves(params))
    assert masking.size(masking.dense(params, "body")) < masking.size(masking.dense(params, "kernels"))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_model_gets_a_gradient(name):
    bench = make_bench("ticket", model=name, masks=lambda params: masking.dense(params, "kernels"))
    *_, state = bench.run(4)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), bench.state.trainable, state.trainable)
    assert all(jax.tree.leaves(moved)), trees.named_leaves(moved)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_its_splits_in_the_stored_types(name, image_arrays):
    options = dict(root=str(image_arrays), num_classes=3, holdout=20) if name == "arrays" else {}
    source = discovery.build(giung2_ext.data.sources, "data source", name, **options)
    assert {"train", "validation", "test"} <= set(source.splits)
    channels = source.split("train").images.shape[-1]
    assert len(source.mean) == len(source.std) == channels
    for split in source.splits.values():
        assert split.images.dtype in (np.uint8, np.float32)
        assert split.labels.dtype == np.int32
        assert len(split.images) == len(split.labels)
        assert set(np.unique(split.labels)) <= set(range(source.num_classes))
    with pytest.raises(Refusal, match="did you mean 'test'"):
        source.split("tets")
