"""What is kept of an answer, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import predictions
from giung2_ext.data.classes import IMAGENET_A, IMAGENET_R

CLASSES = 1000


def expected(logits, labels, classes):
    """By the book: only the logits of `classes`, in float64."""
    logits = np.asarray(logits, np.float64)[:, classes]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    at = [classes.index(label) for label in labels]
    hot = np.eye(len(classes))[at]
    return {
        "top": np.asarray(classes)[np.argsort(-logits, axis=1, kind="stable")[:, :5]],
        "nll": -np.log(p[np.arange(len(at)), at]),
        "confidence": p.max(1),
        "brier": ((p - hot) ** 2).sum(1),
    }


@pytest.mark.parametrize("subset", [IMAGENET_R, IMAGENET_A, None], ids=["R", "A", "all"])
def test_answers_are_those_among_the_classes_of_the_set(subset):
    draw = np.random.default_rng(0)
    classes = list(subset or range(CLASSES))
    labels = np.array(classes * (200 // len(classes)) or classes)[:200]  # every class of R and A once
    logits = draw.normal(0, 4, (len(labels), CLASSES)).astype(np.float32)
    found = predictions.summarise(jnp.asarray(logits), jnp.asarray(labels), subset)
    for name, value in expected(logits, labels, classes).items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    assert set(np.unique(found["top"])) <= set(classes)


def test_a_class_outside_the_set_never_wins_however_likely():
    logits = np.zeros((1, CLASSES), np.float32)
    outside, inside = 0, IMAGENET_R[5]
    assert outside not in IMAGENET_R
    logits[0, outside], logits[0, inside] = 50, 5
    label = jnp.asarray([inside])
    among = predictions.summarise(jnp.asarray(logits), label, IMAGENET_R)
    everything = predictions.summarise(jnp.asarray(logits), label)
    assert int(among["top"][0, 0]) == inside
    assert int(everything["top"][0, 0]) == outside
    assert float(among["nll"][0]) < 1 < float(everything["nll"][0])


def test_equal_logits_go_to_the_lowest_class_as_in_training():
    found = predictions.summarise(jnp.zeros((1, 7)), jnp.asarray([3]))
    assert found["top"].tolist() == [[0, 1, 2, 3, 4]]


def test_fewer_than_five_classes_are_all_there_are():
    assert predictions.summarise(jnp.eye(3), jnp.arange(3))["top"].shape == (3, 3)


def test_confident_answers_keep_their_precision():
    logits = jnp.asarray([[80.0, 0.0, 0.0], [0.0, 80.0, 0.0]])
    found = predictions.summarise(logits, jnp.asarray([0, 0]))
    np.testing.assert_allclose(found["nll"], [0, 80], atol=1e-6)
    np.testing.assert_allclose(found["brier"], [0, 2], atol=1e-6)
