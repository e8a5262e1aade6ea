"""What scripts/convert.py does: finds out what a file is, brings it in or out, and says what was done."""

import re

from etils import epath

from giung2_ext.core import accounting
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import exporting, importing
from giung2_ext.experiments.evaluate import totals
from giung2_ext.storage import paths, survival, tickets


def convert(name: str, to: str, wishes: importing.Wishes, masks: bool = False) -> epath.Path:
    """Returns what was written."""
    path, target = epath.Path(name), epath.Path(to)
    if path.is_dir() and paths.is_chain(path):
        return export_chain(path, target)
    ticket, what = importing.open_any(path, wishes)
    weights, flops = totals(ticket.meta)
    print(f"{name}: {what}: {ticket.meta['model']['name']} in {ticket.meta['num_classes']} classes")
    print(accounting.describe_weights(weights))
    print(accounting.describe_flops(flops))
    if target.suffix in exporting.FORMATS:
        exporting.export(ticket, target, masks)
        print(f"ticket {ticket.digest[:16]} → {target} ({target.stat().length:,} bytes)")
        return target
    if path.is_dir() or re.fullmatch(r"\.[a-z]\w*", target.suffix):
        raise exporting.no_format(target)
    found = importing.write(target, ticket)
    print(f"ticket {ticket.digest[:16]} → {found}")
    return found


def export_chain(folder: epath.Path, target: epath.Path) -> epath.Path:
    """The masks of all cycles of one chain as one map."""
    bases = paths.trial_bases(folder)
    if len(bases) > 1:
        raise Refusal(f"{folder} has {len(bases)} trials: name one, such as {next(iter(bases.values()))}")
    if target.suffix != ".npz":
        raise Refusal(f"the masks of a chain go to one file, --to=NAME.npz; got --to={target}")
    cycles = [cycle for cycle in paths.cycles(folder) if (cycle / paths.LAST).exists()]
    if not cycles:
        raise Refusal(f"{folder} has no finished cycle")
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
