"""What scripts/convert.py does: finds out what a file is, brings it in or out, and says what was done."""

import re

import numpy as np
from etils import epath

from giung2_ext.core import accounting, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import exporting, importing
from giung2_ext.experiments.building import totals_of
from giung2_ext.storage import paths, survival, tickets

ASSUMED = ("padding", "stem", "shortcut", "head", "activation")


def convert(name: str, to: str, wishes: importing.Wishes, masks: bool = False) -> epath.Path:
    """Returns what was written."""
    path, target = epath.Path(name), epath.Path(to)
    if masks and target.suffix not in exporting.WITH_MASKS:
        raise Refusal(f"--masks=true is for {', '.join(exporting.WITH_MASKS)}; got --to={target}")
    if path.is_dir() and paths.is_chain(path):
        wishes.only((), f"{name}, which is a chain")
        return export_chain(path, target)
    if target.suffix not in exporting.FORMATS and re.fullmatch(r"\.[a-z]\w*", target.suffix):
        raise exporting.no_format(target)
    if target.suffix not in exporting.FORMATS and path.is_dir():
        raise Refusal(
            f"{name} is a ticket already: --to=NAME with {', '.join(exporting.FORMATS)} exports it"
        )
    ticket, what = importing.open_any(path, wishes)
    weights, flops = totals_of(ticket.meta)
    print(f"{name}: {what}: {ticket.meta['model']['name']} in {ticket.meta['num_classes']} classes")
    print(accounting.describe_weights(weights))
    print(accounting.describe_flops(flops))
    if not path.is_dir():
        print("\n".join(assumed(ticket)))
    if target.suffix in exporting.FORMATS:
        whole = exporting.export(ticket, target, masks)
        if not whole:
            print("kept weights are exactly 0 and the file cannot tell: --masks=true writes the masks too")
        print(f"ticket {ticket.digest[:16]} → {target} ({target.stat().length:,} bytes)")
        return target
    found = importing.write(target, ticket)
    print(f"ticket {ticket.digest[:16]} → {found}")
    return found


def assumed(ticket: tickets.Ticket) -> list[str]:
    """What a file does not say and an import takes for granted, and what is odd."""
    model = {key: value for key, value in ticket.meta["model"].items() if key in ASSUMED}
    pixels = ticket.statistics.get("image_stats", {})
    told = [f"{key} {value}" for key, value in model.items()]
    told += [
        f"{kind} {', '.join(f'{value:.4g}' for value in pixels[key])}"
        for kind, key in (("mean", "m"), ("std", "s"))
        if pixels
    ]
    data, classes = ticket.meta["data"]["name"], ticket.meta["num_classes"]
    lines = [f"as images of {data}: {', '.join(told)}"]
    known = importing.classes_and_shape(data)
    if known is not None and known[0] != classes:
        lines.append(f"warning: {data} has {known[0]} classes and this network {classes}")
    arrays = trees.named_leaves({"params": ticket.params, "statistics": ticket.statistics})
    wrong = {name: int(np.count_nonzero(~np.isfinite(values))) for name, values in arrays.items()}
    if any(wrong.values()):
        where = ", ".join(name for name, count in wrong.items() if count)
        lines.append(f"warning: {sum(wrong.values()):,} numbers are NaN or infinite, in {where}")
    return lines


def export_chain(folder: epath.Path, target: epath.Path) -> epath.Path:
    """The masks of all cycles of one chain as one map."""
    if target.suffix != ".npz":
        raise Refusal(f"the masks of a chain go to one file, --to=NAME.npz; got --to={target}")
    cycles = paths.finished_cycles(folder)
    read = [tickets.read_ticket(cycle / paths.LAST) for cycle in cycles]
    names = [str(cycle) for cycle in cycles]
    found = survival.gather([t.masks for t in read], names, [t.digest for t in read])
    content = survival.to_bytes(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    paths.write_bytes(target, content)
    kept = [t.meta["kept"] for t in read]
    print(
        f"{len(cycles)} nested masks of {read[0].meta['prunable']:,} weights, {kept[0]:,} to {kept[-1]:,} "
        f"kept → {target} ({len(content):,} bytes)"
    )
    return target
