import jax
import jax.numpy as jnp
import pytest
from fakes import random_variables


@pytest.fixture
def both_signs():
    """Random variables whose scales have both signs: then BatchNorm and a pooling do not commute."""

    def turned(path, leaf):
        return leaf * (-1.0) ** jnp.arange(len(leaf)) if path[-1].key == "scale" else leaf

    def make(network, image):
        return jax.tree_util.tree_map_with_path(turned, random_variables(network, image))

    return make
