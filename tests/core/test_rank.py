import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import rank

SHAPES = [(3, 3, 4, 20), (3, 3, 2, 30), (1, 1, 30, 12), (17, 17)]  # tall, wide, of one pixel, square


def draw(shape, seed=0, sparse=False):
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=shape)
    if sparse:
        kernel *= generator.random(shape) < 0.3
    return kernel.astype(np.float32)


def literal(kernel, tolerance):
    """The published rule with a float64 SVD: energy left out, number left out, gradient of the loss."""
    matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T
    norm = np.linalg.norm(matrix)
    unit = matrix / norm
    u, s, vt = np.linalg.svd(unit, full_matrices=False)
    sums = np.cumsum(s[::-1] ** 2)
    fewest = int(np.argmin(np.abs(sums - tolerance)))
    k = len(s) - 1 - fewest
    rest = unit - (u[:, :k] * s[:k]) @ vt[:k]
    energy = (rest**2).sum()
    gradient = -2 / norm * (rest - energy * unit)
    return energy, len(s) - k, gradient.T.reshape(kernel.shape), sums


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("tolerance", [0.1, 0.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient_are_those_of_a_full_svd(shape, tolerance, sparse):
    kernel = draw(shape, sparse=sparse)
    energy, _, gradient, _ = literal(kernel, tolerance)
    loss, found = jax.jit(jax.value_and_grad(rank.kernel_loss), static_argnums=1)(kernel, tolerance)
    assert float(loss) == pytest.approx(-energy, abs=1e-5)
    assert np.abs(found - gradient).max() < 1e-6 + 1e-5 * np.abs(gradient).max()


def test_the_closed_form_is_the_gradient_with_the_approximation_held_fixed():
    """To 1e-6, against JAX's own derivative in float64; nothing is differentiated through eigh."""
    with jax.enable_x64(True):
        kernel = jnp.asarray(draw((3, 3, 4, 20)), jnp.float64)
        unit = kernel.reshape(-1, 20) / jnp.linalg.norm(kernel)
        approximation = unit - rank.residual(unit, 0.2)

        def loss(kernel):
            matrix = kernel.reshape(-1, 20)
            return -jnp.sum((matrix / jnp.linalg.norm(matrix) - approximation) ** 2)

        expected = jax.grad(loss)(kernel)
        found = jax.grad(rank.kernel_loss)(kernel, 0.2)
        assert float(jnp.abs(found - expected).max()) < 1e-12


def test_the_rank_comes_from_the_energy_left_out_and_not_from_a_share_of_the_rows():
    energies = np.array([0.01, 0.02, 0.07, 0.3, 0.6], np.float32)  # sums .01 .03 .10 .40 1
    for tolerance, left in ((0.0, 1), (0.019, 1), (0.021, 2), (0.09, 3), (0.2, 3), (0.3, 4), (1.0, 5)):
        assert int(rank.left_out(energies, tolerance)) == left


def test_the_gram_matrix_gives_the_rank_of_the_svd_but_where_two_are_equally_near():
    count, other = 0, 0
    left = jax.jit(lambda m, t: rank.left_out(jnp.maximum(jnp.linalg.eigvalsh(m.T @ m), 0), t))
    for seed in range(40):
        kernel = draw((72, 24), seed, sparse=seed % 2 == 0) * np.logspace(0, -3, 24, dtype=np.float32)
        for tolerance in (0.02, 0.1, 0.2):
            _, expected, _, sums = literal(kernel, tolerance)
            nearest = np.sort(np.abs(sums - tolerance))
            unit = kernel / np.linalg.norm(kernel)
            same = int(left(unit, tolerance)) == expected
            assert same or nearest[1] - nearest[0] < 2e-5
            count, other = count + 1, other + (not same)
    assert count == 120
    assert other < 3


def test_kernels_that_are_zero_count_nowhere_and_the_mean_is_over_the_others():
    kernels = {"a": draw((3, 3, 4, 8)), "b": draw((3, 3, 4, 8), 1), "c": np.zeros((3, 3, 4, 8), np.float32),
               "d": None, "e": draw((6, 5), 2)}  # fmt: skip
    each = [float(rank.kernel_loss(kernels[k], 0.2)) for k in "abe"]
    loss, grads = jax.jit(jax.value_and_grad(lambda k: rank.adversarial_loss(k, 0.2)))(kernels)
    assert float(loss) == pytest.approx(sum(each) / 3, rel=1e-5)
    assert not grads["c"].any()
    alone = jax.grad(lambda k: rank.kernel_loss(k, 0.2))(kernels["e"])
    assert np.allclose(grads["e"], alone / 3, atol=1e-6)


MANY_SHAPES = """
import jax, jax.numpy as jnp
from giung2_ext.core import rank
shapes = {(n, i): (n, 2 * n) for n in range(24, 104, 8) for i in range(3)}
tree = {str(k): jax.random.normal(jax.random.key(0), s) for k, s in shapes.items()}
loss = jax.jit(lambda t: rank.adversarial_loss(t, 0.1))
for _ in range(5):
    loss(tree).block_until_ready()
"""


def test_stacks_of_many_shapes_do_not_wait_for_each_other_for_ever():
    """In a process of its own: XLA's threads on a CPU once did."""
    subprocess.run([sys.executable, "-c", MANY_SHAPES], timeout=120, check=True)
