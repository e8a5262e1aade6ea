"""A method, a model or a source is a module with a `build`; its file name is its key."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

from giung2_ext.core.errors import Refusal, did_you_mean, unknown


def names(package: ModuleType) -> list[str]:
    """Module names; a leading underscore marks a part that several of them share."""
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def build(package: ModuleType, kind: str, name: str, /, **options: Any) -> Any:
    """Calls `build` of the module `name` in `package`; unknown names and options are refused."""
    known = names(package)
    if name not in known:
        raise unknown(kind, name, known)
    maker = importlib.import_module(f"{package.__name__}.{name}").build
    accepted = list(inspect.signature(maker).parameters)
    for option in options:
        if option not in accepted:
            raise Refusal(
                f"{kind} {name!r} takes no option {option!r}; it takes: {', '.join(accepted)}"
                f"{did_you_mean(option, accepted)}"
            )
    return maker(**options)
