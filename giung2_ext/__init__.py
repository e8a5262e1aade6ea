"""giung2_ext: find, train, search, evaluate and ship sparse networks in JAX."""

__version__ = "0.1.0"
