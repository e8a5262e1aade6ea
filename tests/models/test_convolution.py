import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.models import _convolution

CASES = [  # size, width, stride, pads of rows and columns
    (8, 3, 1, ((1, 1), (1, 1))),
    (9, 3, 2, ((0, 1), (1, 1))),
    (8, 1, 2, ((0, 0), (0, 0))),
    (11, 7, 2, ((3, 3), (2, 4))),
    (8, 4, 4, ((0, 0), (0, 0))),
    (7, 3, 3, ((0, 2), (1, 0))),
]


def operands(size, width, dtype=jnp.float32):
    draw = np.random.default_rng(size * width)
    images, kernel = draw.normal(size=(3, size, size, 4)), draw.normal(size=(width, width, 4, 5))
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize(("size", "width", "stride", "pads"), CASES)
def test_gradients_are_those_that_jax_derives(size, width, stride, pads):
    images, kernel = operands(size, width)
    strides = (stride, stride)
    derived = lambda x, k: _convolution._forward(x, k, strides, pads)  # noqa: E731
    ours = lambda x, k: _convolution.convolve(x, k, strides, pads)  # noqa: E731
    out, pull = jax.vjp(derived, images, kernel)
    given = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32)
    found, our_pull = jax.vjp(ours, images, kernel)
    assert np.array_equal(out, found)
    for expected, gradient in zip(pull(given), our_pull(given), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)


def test_a_gradient_has_the_type_of_what_it_is_of():
    images, kernel = operands(8, 3, jnp.bfloat16)
    pads = ((1, 1), (1, 1))
    out, pull = jax.vjp(lambda x, k: _convolution.convolve(x, k, (1, 1), pads), images, kernel)
    assert [out.dtype, *(gradient.dtype for gradient in pull(out))] == [jnp.bfloat16] * 3


def step(images, kernel):
    """A gradient step on kernel and images, so that both gradients are needed."""
    layer = _convolution.Conv(5, (3, 3), use_bias=False)
    loss = lambda k, x: (layer.apply({"params": {"kernel": k}}, x) ** 2).sum()  # noqa: E731
    of_kernel, of_images = jax.grad(loss, (0, 1))(kernel, images)
    return images - 0.01 * of_images, kernel - 0.01 * of_kernel


def test_every_convolution_within_a_loop_has_the_form_that_is_quick_on_a_cpu():
    def train(images, kernel, steps):
        return jax.lax.fori_loop(0, steps, lambda _, both: step(*both), (images, kernel))

    lowered = jax.jit(train).lower(*operands(8, 3), 3).as_text()
    forms = re.findall(r"dim_numbers = ([^,]*, [^,]*, [^,]*, [^]]*\]x[^]]*\]->\[[^]]*\])", lowered)
    assert len(forms) == 3
    assert set(forms) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_on_other_devices_gradients_are_jaxs_own():
    lowered = jax.jit(step).trace(*operands(8, 3)).lower(lowering_platforms=("tpu",)).as_text()
    assert "[f, 0, 1, b]" in lowered
    assert lowered.count("stablehlo.convolution") == 3  # and no other branch


def test_second_derivatives_exist():
    images, kernel = operands(6, 3)
    loss = lambda k: (_convolution.convolve(images, k, (1, 1), "SAME") ** 3).sum()  # noqa: E731
    plain = lambda k: (_convolution._forward(images, k, (1, 1), ((1, 1), (1, 1))) ** 3).sum()  # noqa: E731
    twice = lambda f: jax.grad(lambda k: (jax.grad(f)(k) ** 2).sum())(kernel)  # noqa: E731
    np.testing.assert_allclose(twice(loss), twice(plain), rtol=1e-3)


def test_options_that_it_does_not_know_are_refused():
    images, kernel = operands(8, 3)
    with pytest.raises(NotImplementedError, match="rhs_dilation"):
        _convolution.convolve(images, kernel, (1, 1), "SAME", rhs_dilation=(2, 2))
