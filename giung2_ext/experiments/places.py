"""Devices to compile for: those of this machine, or those of a TPU slice that is not there."""

import importlib.metadata
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from giung2_ext.core.errors import Refusal
from giung2_ext.training import accumulation, chips

QUIET = {  # libtpu asks the cloud what machine this is, and complains where there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Place(NamedTuple):
    """Devices, and what one of them has."""

    name: str
    devices: list[Any]
    memory: int  # bytes of one
    chip: chips.Chip | None

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})

    @property
    def kind(self) -> str:
        return self.devices[0].device_kind

    @property
    def compiler(self) -> str:
        """What compiles for them, with its version."""
        if not self.tpu:
            return f"jaxlib {jax.lib.__version__}"
        return f"libtpu {importlib.metadata.version('libtpu')}"

    @property
    def tpu(self) -> bool:
        return self.devices[0].platform == "tpu"


def _named(topology: str) -> str | None:
    """What Google's name of a slice, such as v4-32, is here; those of v2, v3, v4 and v5p count cores."""
    found = re.fullmatch(r"(v[2-6]\w*?)(?:litepod)?-(\d+)", topology)
    if found is None:
        return None
    kind = "v5e" if "litepod" in topology else found[1]
    chips = int(found[2]) // (2 if kind in ("v2", "v3", "v4", "v5p") else 1)
    if not chips:
        return None
    sides, solid = [1, 1, 1], kind in ("v4", "v5p")
    while np.prod(sides) * 2 <= chips:
        sides[sides.index(min(sides[:2] if np.prod(sides) < 4 or not solid else sides))] *= 2
    if np.prod(sides) != chips or chips < 4:
        count = f"{chips} chip" + "s" * (chips > 1)
        return f"that is {count}: write {kind}:SHAPE, as they lie, of whole hosts"
    shape = "x".join(map(str, sorted(sides) if chips > 4 or not solid else sides))
    return f"that is {chips} chips: {kind}:{shape if solid else shape.removeprefix('1x')}, if they lie so"


def _reason(said: str) -> str:
    """What libtpu says of a slice, in words that say what to do."""
    usage = "write NAME:SHAPE in chips, such as v3:2x2, v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:2x4"
    if "libtpu" in said or "Unable to" in said or "not installed" in said:
        return "it needs libtpu: pip install -e '.[tpu]'"
    if "does not match regex" in said:
        return usage
    if "Invalid TPU external name" in said:
        return f"there is no such TPU; {usage}"
    if host := re.search(r'chips_per_host_bounds "([\dx]+)"', said):
        return f"a host of it has {host[1]} chips, which do not fill that shape; {usage}"
    return f"{usage} ({said.splitlines()[0]})"


def open_place(topology: str | None) -> Place:
    """The devices of this machine, or those of a TPU slice that is not there."""
    if topology is None:
        devices = jax.local_devices()
        chip = chips.of(devices[0].device_kind)
        return Place("this machine", devices, accumulation.device_memory(), chip)
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    try:
        devices = list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except Exception as error:  # of many kinds, by what is wrong
        raise Refusal(f"--topology={topology}: {_named(topology) or _reason(str(error))}") from error
    chip = chips.of(devices[0].device_kind)
    if chip is None:
        raise Refusal(f"--topology={topology}: nothing is known of a {devices[0].device_kind}")
    return Place(topology, devices, chip.memory, chip)
