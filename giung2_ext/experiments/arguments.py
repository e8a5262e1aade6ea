"""A config file and its arguments: `FILE[:ARG,…]`, each ARG a parameter of the file's `get_config`.

A switch (its default is True or False) is written NAME, anything else NAME=VALUE; the type is that of the
default. Booleans are true/false/t/f/yes/no/y/n/1/0.
"""

import importlib.util
import inspect
import pathlib
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_collections

from giung2_ext.core.errors import Refusal, did_you_mean

Config = ml_collections.ConfigDict

TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number"}

# Names whose meaning differs from paper to paper.
FRACTIONS = ("prune_rate", "prune_percent", "sparsity", "pr", "pr_cfg")
DENSITY = (
    "; density is the fraction kept. The published prune_rate of Multi-Prize tickets is the fraction kept "
    "too; pr of Lottery Jackpots, sparsity and a percentage to prune are what is removed: write "
    "--density=KEPT where the config file takes it, else --config.masks.density=KEPT"
)


def suggest(name: str, known: Iterable[str]) -> str:
    """What an unknown name may have meant, to end a message with."""
    last = name.rpartition(".")[2].replace("-", "_")
    if last not in FRACTIONS:
        return did_you_mean(name, known)
    return DENSITY + did_you_mean(name, set(known) & set(FRACTIONS))


def convert(text: str, kind: type, optional: bool, label: str, default: Any = ()) -> Any:
    """`text` as a value of `kind`; `None` where the default is None. `label` is for the message."""
    if optional and text == "None":
        return None
    try:
        if kind is bool:
            if text.lower() not in TRUE + FALSE:
                raise ValueError
            return text.lower() in TRUE
        if kind is tuple:
            return _tuple(text, default)
        if kind in (int, float):
            return kind(text)
    except ValueError:
        expected = EXPECTED[kind] if kind is not tuple else f"values like {','.join(map(str, default))}"
        raise Refusal(f"{label} takes {expected}, got {text!r}") from None
    return text


def _tuple(text: str, default: Any) -> tuple[Any, ...]:
    """`300,100` or `reinit`, with or without brackets; elements are of the default's type.

    Where the default is empty they are whole numbers, if all can be, or words.
    """
    words = [word.strip(" '\"") for word in text.strip("()[] ").split(",")]
    numbers = all(word.isdigit() for word in words if word)
    kind = type(default[0]) if default else int if numbers else str
    return tuple(kind(word) for word in words if word)


class ConfigFile(NamedTuple):
    path: pathlib.Path
    get_config: Callable[..., Any]
    defaults: dict[str, Any]  # of its parameters

    def is_switch(self, name: str) -> bool:
        return isinstance(self.defaults[name], bool)

    def value(self, name: str, text: str, label: str) -> Any:
        default = self.defaults[name]
        kind = str if default is None else type(default)
        return convert(text, kind, default is None, label, default)

    def read(self, text: str) -> dict[str, Any]:
        """The values that `ARG,…` gives."""
        given: dict[str, Any] = {}
        for word in filter(None, text.split(",")):
            name, equals, value = word.partition("=")
            if name not in self.defaults:
                raise Refusal(
                    f"{self.path} takes no argument {name!r}; it takes: {self.listed()}"
                    f"{suggest(name, self.defaults)}"
                )
            if name in given:
                raise Refusal(f"{self.path}: {name} is given twice")
            if not equals and not self.is_switch(name):
                raise Refusal(f"{self.path}: {name} needs a value: {name}=VALUE")
            given[name] = self.value(name, value if equals else "true", f"{self.path}: {name}")
        return given

    def listed(self) -> str:
        names = (n if v is False else f"{n}={v}" for n, v in self.defaults.items())
        return ", ".join(names) or "none"

    def make(self, given: dict[str, Any]) -> Config:
        try:
            config = self.get_config(**given)
        except Refusal:
            raise
        except Exception as error:
            raise _broken(self.path, error) from error
        if not isinstance(config, Config):
            raise Refusal(f"{self.path}: get_config() must return a config, got {type(config).__name__}")
        return config.lock()


def open_file(name: str) -> ConfigFile:
    path = pathlib.Path(name)
    if not path.is_file():
        raise Refusal(f"no config file {name}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise Refusal(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(path, error) from error
    if not hasattr(module, "get_config"):
        raise Refusal(f"{name} has no get_config()")
    parameters = inspect.signature(module.get_config).parameters
    bare = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    if bare:
        raise Refusal(f"{name}: get_config's {', '.join(bare)} needs a default, which tells its type")
    return ConfigFile(path, module.get_config, {n: p.default for n, p in parameters.items()})


def _broken(path: pathlib.Path, error: Exception) -> Refusal:
    """What is wrong with a config file, and in which of its lines."""
    if isinstance(error, SyntaxError):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if pathlib.Path(frame.filename).resolve() == path.resolve()]
        line = own[-1].lineno if own else None
    return Refusal(
        f"{path}, line {line}: {type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    )
