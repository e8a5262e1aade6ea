"""What one device of a kind can do: its peak rate of bfloat16 products, and its memory (vendors' figures).

A device is what JAX calls one: a core of TPU v2, v3 and 7x, a whole chip of the others.
"""

from typing import NamedTuple

GIB = 1 << 30


class Chip(NamedTuple):
    flops: float  # FLOP/s
    memory: int  # bytes


CHIPS = {  # by the start of `device_kind`, longer ones first
    "TPU v2": Chip(22.5e12, 8 * GIB),
    "TPU v3": Chip(61.5e12, 16 * GIB),
    "TPU v4": Chip(275e12, 32 * GIB),
    "TPU v5 lite": Chip(197e12, 16 * GIB),
    "TPU v5": Chip(459e12, 95 * GIB),
    "TPU v6 lite": Chip(918e12, 32 * GIB),
    "TPU7x": Chip(1153.5e12, 96 * GIB),
    "NVIDIA A100": Chip(312e12, 0),  # sold with different memories: the device says which
    "NVIDIA H100": Chip(989.5e12, 0),
    "NVIDIA H100 PCIe": Chip(756.5e12, 0),
    "NVIDIA H100 NVL": Chip(835.5e12, 0),
    "NVIDIA H200": Chip(989.5e12, 0),
    "NVIDIA H200 NVL": Chip(835.5e12, 0),
}


def of(kind: str) -> Chip | None:
    """The chip of a device's `device_kind`, if it is known."""
    found = [name for name in CHIPS if kind.startswith(name)]
    return CHIPS[max(found, key=len)] if found else None
