"""From a ticket to a file for others: PyTorch's, safetensors, or a compact ticket.

PyTorch's and safetensors' have the names of public code (`models/_torch_names.py`), with zeros where
weights are pruned, so that they load as they are; with masks, weights and masks are called `weight_orig`
and `weight_mask`, as `torch.nn.utils.prune` does. The ticket's lineage goes along; an import of the file is
the ticket again, to the digest.
"""

import json
from collections.abc import Callable

import numpy as np
from etils import epath
from safetensors import numpy as safetensors

from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.experiments.fitting import Network
from giung2_ext.experiments.importing import Wishes, ticket_of
from giung2_ext.models import _torch_names
from giung2_ext.storage import paths, single_files, tickets, torch_files
from giung2_ext.storage.importers.state_dict import ABOUT

Arrays = dict[str, np.ndarray]


def named_for_torch(ticket: tickets.Ticket, masks: bool) -> tuple[Arrays, bytes]:
    """A ticket's arrays in PyTorch's names and layouts, and what else an import needs."""
    network = Network.of(ticket.meta)
    params, kept = trees.named_leaves(ticket.params), trees.named_leaves(ticket.masks)
    statistics = trees.named_leaves(ticket.statistics.get("batch_stats", {}))
    arrays, masked = {}, []
    for entry in network.entries:
        leaf = (statistics if entry.kind == "statistic" else params)[entry.ours]
        mask, name = kept.get(entry.ours) if entry.kind != "statistic" else None, entry.theirs
        if mask is not None:
            masked.append(name)
        if mask is not None and masks:
            arrays[f"{name}_orig"] = _torch_names.to_torch(entry, leaf)
            arrays[f"{name}_mask"] = _torch_names.to_torch(entry, mask).astype(np.float32)
        else:
            arrays[name] = _torch_names.to_torch(entry, leaf)
    pixels = ticket.statistics["image_stats"]
    exported = {"mean": pixels["m"].tolist(), "std": pixels["s"].tolist(), "masked": masked}
    about = ticket.meta | {"exported": exported}
    found = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return found, json.dumps(about, sort_keys=True).encode()


def to_torch(ticket: tickets.Ticket, masks: bool) -> bytes:
    arrays, about = named_for_torch(ticket, masks)
    return torch_files.write(arrays, {ABOUT: about})


def to_safetensors(ticket: tickets.Ticket, masks: bool) -> bytes:
    arrays, about = named_for_torch(ticket, masks)
    return safetensors.save(arrays, {ABOUT: about.decode()})


def to_compact(ticket: tickets.Ticket, masks: bool) -> bytes:
    return single_files.to_compact(*ticket)


FORMATS: dict[str, Callable[[tickets.Ticket, bool], bytes]] = {
    ".pt": to_torch,
    ".pth": to_torch,
    ".safetensors": to_safetensors,
    ".npz": to_compact,
}


WITH_MASKS = (".pt", ".pth", ".safetensors")


def no_format(path: epath.Path) -> Refusal:
    return unknown("ending of --to", path.suffix or path.name, FORMATS)


def export(ticket: tickets.Ticket, path: epath.Path, masks: bool = False) -> bool:
    """Writes the file that its ending asks for; says whether an import of it is the ticket again.

    It is not where kept weights are exactly 0 and the masks are left out; any other loss is refused.
    """
    if path.suffix not in FORMATS:
        raise no_format(path)
    content = FORMATS[path.suffix](ticket, masks)
    zeros = not masks and path.suffix != ".npz" and _kept_zeros(ticket)
    if not zeros and ticket_of(content, path.name, Wishes())[0].digest != ticket.digest:
        raise Refusal(
            f"{path} would not be the ticket {ticket.digest[:16]}: it has more than a file can hold"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.write_bytes(path, content)
    return not zeros


def _kept_zeros(ticket: tickets.Ticket) -> bool:
    weights = trees.named_leaves(ticket.params)
    masks = trees.named_leaves(ticket.masks)
    return any(mask is not None and (weights[name] == 0)[mask].any() for name, mask in masks.items())
