"""What is decided once for a run, and recorded: its seed, precision and augmentation."""

import secrets
from collections.abc import Mapping
from typing import Any

from etils import epath

from giung2_ext.experiments.building import mixed_precision
from giung2_ext.experiments.config import Config
from giung2_ext.experiments.feeding import is_streamed
from giung2_ext.storage import records
from giung2_ext.training import processes


def settled(folder: epath.Path, config: Config, seed: int | None = None) -> Config:
    """A copy with what is decided once for a run and recorded: its seed, precision and augmentation.

    What the folder has recorded holds where the config gives none; else the seed is `seed`, or drawn,
    the precision what the machine makes of `mixed_precision`, and streamed images are cropped at
    random. A seed in the config means that `seed`, derived from it, is asked for, whatever is recorded.
    """

    return decided(config, *processes.agree(lambda: decide(config, records.recorded_recipe(folder), seed)))


def decide(config: Config, recorded: Mapping[str, Any] | None, seed: int | None) -> tuple[int, str, str]:
    """Seed, precision and augmentation."""
    chosen = config.seed if seed is None else seed
    if config.seed is None and recorded is not None:
        chosen = recorded["seed"]
    elif chosen is None:
        chosen = secrets.randbelow(2**31)
    precision = config.precision
    if precision is None and recorded is not None:
        precision = recorded.get("precision", "float32")
    elif precision is None:
        precision = mixed_precision() if config.mixed_precision else "float32"
    augment = config.feed.augment
    if augment is None and recorded is not None:
        augment = recorded["feed"]["augment"]
    elif augment is None:
        augment = "resized_crop" if is_streamed(config.data.name) else "none"
    return chosen, precision, augment


def decided(config: Config, seed: int, precision: str, augment: str) -> Config:
    """A copy with these."""
    made = config.copy_and_resolve_references()
    made.seed, made.precision, made.feed.augment = seed, precision, augment
    return made
