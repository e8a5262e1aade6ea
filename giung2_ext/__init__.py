"""giung2_ext: find, train, search, evaluate and ship sparse networks in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Ticket", "load_and_evaluate", "load_chain_masks", "load_ticket", "save_ticket"]


def __getattr__(name: str) -> Any:
    """The library, once somebody asks for it: nothing is imported for those who do not."""
    if name == "load_and_evaluate":
        from giung2_ext.experiments import evaluate

        return evaluate.load_and_evaluate
    if name in __all__:
        from giung2_ext.experiments import library

        return getattr(library, name)
    raise AttributeError(f"module 'giung2_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
