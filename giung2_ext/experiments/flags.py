"""The command line: `--config=FILE[:ARG,…]`, `--config.a.b=VALUE`, and the original suite's flags.

One table maps each original flag to its config field; only flags that are present override, and a
field given under both names is an error. Every argument of the config file is a flag too, before the
table's flag of that name. Booleans are true/false/t/f/yes/no/y/n/1/0 after `=`.
"""

from typing import Any

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import arguments as reading
from giung2_ext.experiments.config import CHOICES, Config, complete, default_config

ORIGINAL_FLAGS = {
    "data_root": "placement.data_root",
    "data_name": "data.name",
    "resnet_depth": "model.depth",
    "resnet_width": "model.width",
    "batch_size": "feed.batch_size",
    "num_workers": "placement.num_workers",
    "prefetch_factor": "placement.prefetch_factor",
    "optim_ni": "optim.ni",
    "optim_lr": "optim.lr",
    "optim_momentum": "optim.momentum",
    "optim_weight_decay": "optim.weight_decay",
    "optim_label_smoothing": "optim.label_smoothing",
    "optim_global_clipping": "optim.global_clipping",
    "seed": "seed",
    "matching_ckpt": "start.matching_ckpt",
    "previous_ckpt": "start.previous_ckpt",
    "pruning_ratio": "start.pruning_ratio",
    "constant_lr": "optim.constant_lr",
    "periodic_ckpt": "tickets.periodic",
    "mixed_precision": "mixed_precision",
}
PLACEMENT_FLAGS = {
    name: f"placement.{name}"
    for name in ("mesh", "grad_accum", "remat", "distributed", "save_every", "compilation_cache", "profile")
}
OTHER_FLAGS = {"select_on": "evaluation.select_on", "datasets": "judge.datasets"}
FLAGS = ORIGINAL_FLAGS | PLACEMENT_FLAGS | OTHER_FLAGS
IMP_FLAGS = FLAGS | {"pruning_ratio": "chain.pruning_ratio"}  # of imp.py, which starts each cycle itself
CONTINUATION = "if a command spans lines, every line but the last must end in a backslash"
Words = dict[str, list[str]]


def split(arguments: list[str]) -> Words:
    """{flag: [its value, if after `=`, and the words that follow it]}."""
    words: Words = {}
    last: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if name in words:
                raise Refusal(f"--{name} is given twice")
            last = words[name] = [equals, value] if equals else [""]
        elif last is None:
            raise Refusal(f"unexpected argument {argument!r} ({CONTINUATION})")
        else:
            last.append(argument)
    return words


def _value(name: str, words: list[str], boolean: bool) -> str:
    """The text of a flag: after `=`, or the next word (never for booleans), or a bare boolean."""
    value, rest = (words[1], words[2:]) if words[0] else (None, words[1:])
    if value is None and boolean:
        if rest:
            raise Refusal(f"unexpected argument {rest[0]!r}: write --{name}={rest[0]}")
        return "true"
    if value is None:
        if not rest:
            raise Refusal(f"--{name} needs a value: --{name}=VALUE")
        value, rest = rest[0], rest[1:]
    if rest:
        raise Refusal(f"unexpected argument {rest[0]!r} after --{name} ({CONTINUATION})")
    return value


def _section(config: Config, field: str) -> tuple[Config, str]:
    *path, key = field.split(".")
    for part in path:
        config = config[part]
    return config, key


def fields(config: Config) -> dict[str, Any]:
    """{dotted field: value} of every field of a config."""
    flat: dict[str, Any] = {}
    for key, value in config.items(preserve_field_references=False):
        if isinstance(value, Config):
            flat |= {f"{key}.{k}": v for k, v in fields(value).items()}
        else:
            flat[key] = value
    return flat


OPTIONAL = {field for field, value in fields(default_config()).items() if value is None}


def convert(text: str, kind: type, optional: bool, name: str, default: Any = ()) -> Any:
    """The text of the flag `name` as a value of `kind`."""
    return reading.convert(text, kind, optional, f"--{name}", default)


def placement_of(given: dict[str, str | None]) -> Config:
    """The default placement with the fields that flags of these names give."""
    where = default_config().placement
    for name, text in given.items():
        if text is not None:
            where[name] = convert(text, where.get_type(name), True, name)
    return where


def _set(config: Config, field: str, flag: str, words: list[str]) -> None:
    section, key = _section(config, field)
    kind = section.get_type(key)
    optional = field in OPTIONAL
    section[key] = convert(_value(flag, words, kind is bool), kind, optional, flag, section[key])


def _load(text: str, words: Words) -> tuple[Config, reading.ConfigFile]:
    """The config of `FILE[:ARG,…]` and its file; flags that are its arguments are taken out of `words`."""
    name, _, arguments = text.partition(":")
    file = reading.open_file(name)
    given = file.read(arguments)
    for flag in [flag for flag in words if flag in file.defaults]:
        if flag in given:
            raise Refusal(f"--{flag} and --config={text} both set {flag}: leave one of them out")
        given[flag] = file.value(flag, _value(flag, words.pop(flag), file.is_switch(flag)), f"--{flag}")
    return file.make(given), file


def parse(
    arguments: list[str],
    extra: dict[str, str | None],
    default_config: str,
    table: dict[str, str] = FLAGS,
) -> tuple[Config, dict[str, str | None]]:
    """The completed, locked config and the values of the script's own flags (`extra`: defaults)."""
    words = split(arguments)
    switches = ("true", "false")
    own = {n: _value(n, words.pop(n), v in switches) if n in words else v for n, v in extra.items()}
    text = _value("config", words.pop("config"), False) if "config" in words else default_config
    config, file = _load(text, words)

    targets: dict[str, str] = {}  # field -> flag
    for flag in words:
        field = flag.removeprefix("config.") if flag.startswith("config.") else table.get(flag)
        if field is None:
            known = [*file.defaults, *table, *extra, "config", *(f"config.{f}" for f in fields(config))]
            raise Refusal(
                f"unknown flag --{flag}{_nearest(flag, known)}; {file.path} takes: {file.listed()} "
                f"({CONTINUATION})"
            )
        if field in targets:
            raise Refusal(f"--{targets[field]} and --{flag} both set config.{field}")
        targets[field] = flag

    for section in CHOICES:  # a choice made anew starts from that choice's own defaults
        flag = targets.pop(f"{section}.name", None)
        if flag is not None and (name := _value(flag, words[flag], False)) != config[section].name:
            with config.unlocked():
                config[section] = Config(dict(name=name))
    config = complete(config)
    for field, flag in targets.items():
        known = fields(config)
        if field not in known:
            raise Refusal(f"--{flag}: no field config.{field}{_nearest(field, list(known))}")
        _set(config, field, flag, words[flag])
    return config, own


def _nearest(name: str, known: list[str]) -> str:
    return reading.suggest(name, known).replace("'", "")


def parse_own(arguments: list[str], own: dict[str, str | None]) -> dict[str, str | None]:
    """The flags of a script that takes no config; `own` has their defaults."""
    words = split(arguments)
    for flag in words:
        if flag not in own:
            raise Refusal(f"unknown flag --{flag}{_nearest(flag, list(own))}")
    return {n: _value(n, words[n], False) if n in words else v for n, v in own.items()}


def usage(
    doc: str, extra: dict[str, str | None], default_config: str, arguments: list[str], table: dict[str, str]
) -> str:
    """What --help prints: the script's own flags, the config file's, every field and what else sets it."""
    words = split([word for word in arguments if word != "--help"])
    text = _value("config", words.pop("config"), False) if "config" in words else default_config
    config, file = _load(text, words)
    short = {field: f"--{flag}" for flag, field in table.items()}
    lines = [doc.strip(), "", "  --config=FILE[:ARG,…]  (default: configs/imagenet2012.py)"]
    lines += [f"  --{name}={default or '…'}" for name, default in extra.items()]
    lines += [
        "",
        f"the arguments of {file.path}, written FILE:NAME=VALUE,… or --NAME=VALUE: {file.listed()}",
    ]
    lines += ["", "every field of the config, as this file has it:"]
    for field, value in fields(complete(config)).items():
        lines.append(f"  {f'--config.{field}={value}':<44} {short.get(field, '')}".rstrip())
    lines += [
        "",
        "model, data and method take the options of the one that is named",
    ]
    return "\n".join(lines)
