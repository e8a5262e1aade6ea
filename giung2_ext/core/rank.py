"""The adversarial rank loss of RPG: how far a matrix is from its best approximation of low rank.

Tian et al. 2023, https://arxiv.org/abs/2311.17493. A kernel is the matrix M of its outputs by all the rest,
Mn = M / |M|, A its approximation of the rank that leaves out about `tolerance` of its energy, and the loss
-|Mn - A|^2, whose gradient is -2 / |M| * (R - |R|^2 Mn) with R = Mn - A: A is a constant, and no
decomposition is differentiated. Instead of singular vectors those of the smaller Gram matrix are computed
(an SVD of 512x4608 becomes eigenvectors of 512x512). In float32 this squares the condition number: a
left-out energy is off by 1e-5 at most, so the rank is another one only where two are equally near the
tolerance to that.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from giung2_ext.core import trees

Tree = Any
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def left_out(energies: Array, tolerance: float) -> Array:
    """How many of the smallest energies (ascending, sum 1) come nearest to `tolerance`; at least one."""
    return jnp.argmin(jnp.abs(jnp.cumsum(energies) - tolerance)) + 1


def _eigh(gram: Array) -> tuple[Array, Array]:
    energies, vectors = jnp.linalg.eigh(gram)
    return energies, vectors


def _decompose(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors; on a CPU of one matrix at a time.

    There those of several stacks at once deadlock: each waits in XLA's threads for parts that need them.
    """
    one_by_one = jax.custom_batching.sequential_vmap(_eigh)
    return jax.lax.platform_dependent(gram, cpu=one_by_one, default=_eigh)


def residual(matrix: Array, tolerance: float) -> Array:
    """A matrix of norm 1 without its best approximation of the rank that `tolerance` gives."""
    tall = matrix.shape[0] >= matrix.shape[1]
    gram = _product(matrix.T, matrix) if tall else _product(matrix, matrix.T)
    energies, vectors = _decompose(gram)
    chosen = jnp.arange(energies.size) < left_out(jnp.maximum(energies, 0), tolerance)
    vectors = jnp.where(chosen, vectors, 0)
    if tall:
        return _product(_product(matrix, vectors), vectors.T)
    return _product(vectors, _product(vectors.T, matrix))


def _loss_and_gradient(kernel: Array, tolerance: float) -> tuple[Array, Array]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    norm = jnp.sqrt(jnp.sum(matrix**2))
    safe = jnp.where(norm > 0, norm, 1)
    unit = matrix / safe
    rest = residual(unit, tolerance)
    energy = jnp.sum(rest**2)
    return -energy, (-2 / safe * (rest - energy * unit)).reshape(kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def kernel_loss(kernel: Array, tolerance: float) -> Array:
    """-|Mn - A|^2 of one kernel; 0 of one that is 0."""
    return _loss_and_gradient(kernel, tolerance)[0]


kernel_loss.defvjp(_loss_and_gradient, lambda tolerance, gradient, given: (given * gradient,))


def adversarial_loss(kernels: Tree, tolerance: float) -> Array:
    """The mean over the kernels whose loss is not 0; those of one shape are decomposed together."""
    losses = trees.present(trees.map_stacked(lambda kernel: kernel_loss(kernel, tolerance), kernels))
    active = sum(((loss != 0).astype(loss.dtype) for loss in losses), jnp.float32(0))
    return sum(losses, jnp.float32(0)) / jnp.maximum(active, 1)
