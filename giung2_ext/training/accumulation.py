"""Micro-batches: the cuts of a batch that leave the training what it is, and the fewest that fit.

A micro-batch holds whole BatchNorm groups and divides over the devices. Where every device's share of
it holds whole groups too, it is taken from all shares of the batch and nothing moves between devices;
else it is a run of consecutive examples, and groups cross devices.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from giung2_ext.core.errors import Refusal


class DoesNotFit(Refusal):
    """Not even in the most micro-batches."""


def possible(batch_size: int, devices: int, group: int | None) -> list[int]:
    """The numbers of micro-batches; `group` is None without BatchNorm, 0 for the whole batch."""
    if group == 0:
        return [1]
    unit = math.lcm(devices, group or 1)
    return [n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n % unit == 0]


def shares(batch_size: int, devices: int, group: int | None, micro_batches: int) -> int:
    """Of how many equal shares of the batch a micro-batch takes a part."""
    each, rest = divmod(batch_size, devices * micro_batches)
    local = not rest and (group is None or (group > 0 and each % group == 0))
    return devices if local else 1


def device_memory() -> int:
    """Bytes that one device may use; CPU devices share what the machine has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def needed(programs: Sequence[jax.stages.Lowered]) -> float:
    """The most bytes that one of the programs needs on one device; infinite if it cannot be compiled."""
    try:
        return max(peak(lowered.compile()) for lowered in programs)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return math.inf
        raise


def peak(compiled: jax.stages.Compiled) -> float:
    """Bytes on one device: what the compiler for TPUs has planned, elsewhere what it cannot be above.

    There a program whose buffers do not fit is not compiled at all; for CPUs and GPUs the planned peak may
    leave out what is allocated at once.
    """
    analysis: Any = compiled.memory_analysis()
    [first, *_] = jax.tree.leaves(compiled.input_shardings)
    if next(iter(first.device_set)).platform == "tpu":
        return float(analysis.peak_memory_in_bytes)
    whole = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return float(max(analysis.peak_memory_in_bytes, whole - analysis.alias_size_in_bytes))


def fewest(need: Callable[[int], float], counts: Sequence[int], limit: float) -> int:
    """The fewest micro-batches whose step fits; a trial is a compilation, so hopeless ones are skipped."""
    seen: dict[int, float] = {}
    for count in counts:
        if any(n * bytes_ > count * limit for n, bytes_ in seen.items() if math.isfinite(bytes_)):
            continue  # memory falls no faster than the micro-batch shrinks
        seen[count] = need(count)
        if seen[count] <= limit:
            return count
    least = min(seen.values(), default=math.inf)
    raise DoesNotFit(
        f"--grad_accum=auto: a step does not fit in {limit / 2**30:.2f} GiB a device, even in "
        f"{counts[-1]} micro-batches ({least / 2**30:.2f} GiB for the best that was tried); use more "
        "devices, an fsdp axis (--mesh), --mixed_precision=true, or a smaller network or batch"
    )
