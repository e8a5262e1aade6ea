"""A method, a model or a source is a module with a `build`; its file name is its key."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from giung2_ext.core.errors import Refusal, did_you_mean, unknown


def names(package: ModuleType) -> list[str]:
    """Module names; a leading underscore marks a part that several of them share."""
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def maker(package: ModuleType, kind: str, name: str) -> Callable[..., Any]:
    """The `build` of the module `name`; an unknown name is refused."""
    known = names(package)
    if name not in known:
        raise unknown(kind, name, known)
    return importlib.import_module(f"{package.__name__}.{name}").build


def constant(package: ModuleType, name: str, what: str) -> Any:
    """What the module `name` says of itself besides its `build`; None where it, or that, is not there."""
    if name not in names(package):
        return None
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), what, None)


def options(package: ModuleType, kind: str, name: str) -> dict[str, inspect.Parameter]:
    """What the `build` of the module `name` takes."""
    return dict(inspect.signature(maker(package, kind, name)).parameters)


def check_options(kind: str, name: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    accepted = list(accepted)
    for option in given:
        if option not in accepted:
            raise Refusal(
                f"{kind} {name!r} takes no option {option!r}; it takes: {', '.join(accepted) or 'none'}"
                f"{did_you_mean(option, accepted)}"
            )


def build(package: ModuleType, kind: str, name: str, /, **options: Any) -> Any:
    """Calls `build` of the module `name` in `package`; unknown names and options are refused."""
    make = maker(package, kind, name)
    check_options(kind, name, options, inspect.signature(make).parameters)
    return make(**options)
