"""From a file of another suite to a ticket."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

import giung2_ext.data.sources
import giung2_ext.storage.importers
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import fitting
from giung2_ext.experiments.config import Config, complete, default_config
from giung2_ext.models import _torch_shapes
from giung2_ext.storage import locks, paths, records, single_files, survival, tickets, torch_files
from giung2_ext.storage.importers._parts import Arrays, Content, Parts

DTYPES: dict[str, Any] = {  # of safetensors
    **dict(F64="<f8", F32="<f4", F16="<f2", BF16=ml_dtypes.bfloat16, BOOL="?"),
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
SMALL = {10: "cifar10", 100: "cifar100"}  # what networks for small images are trained on, by their classes
OF_WEIGHTS = ("like", "data_name", "mean", "std", "prunable")


class Wishes(NamedTuple):
    """What the user says that a file does not."""

    like: str | None = None  # a ticket of the same network
    data_name: str | None = None
    mean: tuple[float, ...] | None = None  # of the pixels
    std: tuple[float, ...] | None = None
    prunable: str | None = None
    onto: str | None = None
    cycle: int | None = None  # of the map of a chain

    def only(self, taken: Iterable[str], what: str) -> None:
        """Refuses those that say nothing about such a file."""
        for wish, value in self._asdict().items():
            if value is not None and wish not in taken:
                raise Refusal(f"--{wish} says nothing about {what}: leave it out")


def read_content(content: bytes, name: str) -> Content:
    """A file of PyTorch, safetensors or pickled arrays; what is in it is not run."""
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        return _safetensors(content, name)
    return Content(name, *torch_files.read(content, name))


def _safetensors(content: bytes, name: str) -> Content:
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        extra = {key: text.encode() for key, text in header.get("__metadata__", {}).items()}
        arrays = {
            key: np.frombuffer(one["data"], DTYPES[one["dtype"]]).reshape(one["shape"])
            for key, one in safetensors.deserialize(content)
        }
        return Content(name, arrays, extra)
    except Exception as error:  # a damaged file raises a dozen kinds
        raise Refusal(f"{name} cannot be read as safetensors ({error})") from error


def take_apart(content: Content) -> Parts:
    """The parts of a file, by the one importer that knows it."""
    package = giung2_ext.storage.importers
    for name in discovery.names(package):
        try:
            parts = discovery.maker(package, "importer", name)(content)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise Refusal(
                f"{content.name} looks like a file of {name}, and is not made like one "
                f"({type(error).__name__}: {error})"
            ) from error
        if parts is not None:
            return parts
    raise Refusal(
        f"{content.name}: no importer knows what this is; known: {', '.join(discovery.names(package))} "
        "(a state_dict, alone or as state_dict=…, or a list of masks)"
    )


def classes_and_shape(data: str | None) -> tuple[int, tuple[int, ...]] | None:
    """How many classes a set has and what its images are, where its source says so without them."""
    return discovery.constant(giung2_ext.data.sources, data, "CLASSES_AND_SHAPE") if data else None


def described(parts: Parts, wishes: Wishes, name: str) -> dict[str, Any]:
    """Model, data and what follows from them, as a ticket's meta has them."""
    if wishes.like is not None or parts.meta is not None:
        meta = tickets.read_meta(wishes.like) if wishes.like is not None else parts.meta
        assert meta is not None
        return {key: meta[key] for key in ("model", "data", "num_classes", "image_shape")}
    heads = ["fc.weight", "classifier.weight", "classifier.6.weight"]
    heads += sorted((k for k in parts.tensors if re.fullmatch(r"linear\.\d+\.weight", k)), reverse=True)
    head = next((parts.tensors[key] for key in heads if key in parts.tensors), None)
    if head is None:
        raise Refusal(f"{name}: no classifier; looked for {', '.join(heads)}")
    classes = len(head)
    model = _torch_shapes.options_of(parts.tensors, name) | parts.model
    large = model.get("stem") == "large" or model.get("head") == "dense"
    data = wishes.data_name or ("imagenet2012" if large and classes == 1000 else None)
    data = data or (None if large else SMALL.get(classes))
    known = classes_and_shape(data)
    if known is None:
        sets = ", ".join(filter(classes_and_shape, discovery.names(giung2_ext.data.sources)))
        raise Refusal(
            f"{name} has {classes} classes: say which set it is of, --data_name=NAME, NAME one of "
            f"{sets}{f' (got {data})' if data else ''}, or --like=TICKET, one of the same network"
        )
    firsts = (parts.tensors.get(f"{layer}.weight") for layer in ("conv1", "features.0", "convs.0"))
    first = next((t for t in firsts if t is not None), None)
    if first is not None and first.shape[1] != known[1][-1]:
        raise Refusal(
            f"{name} takes images of {first.shape[1]} channels, those of {data} have {known[1][-1]}: "
            "--data_name=NAME says which set it is of"
        )
    config = default_config().unlock()
    config.model, config.data = Config(model), Config(dict(name=data))
    config = complete(config)
    if "mean" in config.data and len(parts.mean) == known[1][-1]:
        config.data.mean, config.data.std = tuple(parts.mean), tuple(parts.std)
    plain = json.loads(json.dumps({"model": config.model.to_dict(), "data": config.data.to_dict()}))
    return plain | {"num_classes": classes, "image_shape": [*known[1]]}


def pixels_of(parts: Parts, wishes: Wishes, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Mean and std of the images: as wished, the like ticket's, the file's, or else those of the set."""
    channels, (mean, std) = about["image_shape"][-1], (parts.mean, parts.std)
    if wishes.like is not None:
        stored = tickets.read_ticket(wishes.like).statistics["image_stats"]
        mean, std = stored["m"], stored["s"]
    elif len(mean) != channels:
        data, package = about["data"], giung2_ext.data.sources
        mean, std = (
            data.get(key) or discovery.constant(package, data["name"], key.upper())
            for key in ("mean", "std")
        )
    mean, std = wishes.mean or mean, wishes.std or std
    if len(mean) != channels or len(std) != channels:
        raise Refusal(f"--mean and --std have one number for each of {channels} channels")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.min(std) > 0):
        raise Refusal(f"--std must be above 0, and both finite; got {tuple(mean)} and {tuple(std)}")
    return {"m": np.asarray(mean, np.float32), "s": np.asarray(std, np.float32)}


def import_parts(parts: Parts, wishes: Wishes, name: str, sha256: str) -> tickets.Ticket:
    """The ticket that a file's parts make."""
    about = described(parts, wishes, name)
    network = fitting.Network.of(about)
    try:
        flat, found = fitting.rename(parts.tensors, network, name)
    except Refusal as error:
        if parts.meta is not None or wishes.like is not None:
            raise
        taken = f"{about['model']['name']} on images of {about['data']['name']}"
        raise Refusal(
            f"{error} (taken for {taken}; --data_name=NAME or --like=TICKET, one of the same network, says "
            "what it is)"
        ) from error
    given = fitting.place_masks(parts, network, name)
    statistics = {"image_stats": pixels_of(parts, wishes, about)} | (
        {"batch_stats": trees.nest(found)} if found else {}
    )
    if parts.meta is None:
        lineage, wanted = _lineage(parts, about, sha256), wishes.prunable
        if wishes.like is not None:
            base = tickets.read_ticket(wishes.like)
            lineage["parents"] = {"like": base.digest}
            masked = (n for n, mask in trees.named_leaves(base.masks).items() if mask is not None)
            wanted = wanted or (base.meta["prunable_rule"] if given.keys() <= set(masked) else None)
        params, masks, lineage["prunable_rule"] = fitting.assemble(flat, given, wanted, name)
        return tickets.make_ticket(params, masks, statistics, lineage)
    own = {key: value for key, value in parts.meta.items() if key != "exported"}
    masks, params = trees.nest({leaf: given.get(leaf) for leaf in flat}), trees.nest(flat)
    ticket = tickets.make_ticket(masking.apply_on_host(masks, params), masks, statistics, own)
    if ticket.digest != parts.meta["digest"]:
        raise Refusal(
            f"{name} is not the ticket {parts.meta['digest'][:16]} that it was exported from: it was "
            "changed, or kept weights are exactly 0 (then export it with --masks=true)"
        )
    return ticket


def _lineage(parts: Parts, about: dict[str, Any], sha256: str) -> dict[str, Any]:
    return {
        "seed": None,
        "step": parts.step,
        "parents": {},
        "imported": {"format": parts.note, "sha256": sha256},
        "precision": "float32",
        **about,
    }


def put_masks(given: Arrays, onto: str, what: dict[str, Any], name: str) -> tickets.Ticket:
    """Masks in our names put onto the weights of a ticket; `what` says where they come from."""
    base = tickets.read_ticket(onto)
    pruned = {leaf: mask for leaf, mask in trees.named_leaves(base.masks).items() if mask is not None}
    gone = sum(int((mask & ~pruned[n]).sum()) for n, mask in given.items() if n in pruned)
    if gone:
        raise Refusal(
            f"{name} keeps {gone:,} weights that {onto} has pruned: name the ticket that has them"
        )
    same = given.keys() <= pruned.keys()
    given = {**pruned, **given}  # what they say nothing of stays pruned
    wanted = base.meta["prunable_rule"] if same else None
    params, masks, rule = fitting.assemble(trees.named_leaves(base.params), given, wanted, name)
    lineage = base.meta | {"parents": {"weights": base.digest}, "imported": what, "prunable_rule": rule}
    return tickets.make_ticket(params, masks, base.statistics, lineage)


def masks_of_list(parts: Parts, onto: str, name: str) -> Arrays:
    if not all(mask.all() for mask in parts.masks if mask is not None and mask.ndim == 1):
        raise Refusal(f"{name} prunes scales of normalisation, which no ticket does")
    of_weights = parts._replace(masks=[m for m in parts.masks if m is None or m.ndim > 1])
    return fitting.place_masks(of_weights, fitting.Network.of(tickets.read_meta(onto)), name)


def masks_of_cycle(found: survival.Survival, cycle: int | None, onto: str, name: str) -> Arrays:
    if cycle is None:
        raise Refusal(f"{name} is the map of a chain of {found.cycles} cycles: name one, --cycle=N")
    masks = {n: m for n, m in trees.named_leaves(found.masks(cycle)).items() if m is not None}
    shapes = {n: leaf.shape for n, leaf in trees.named_leaves(tickets.read_ticket(onto).params).items()}
    for leaf, mask in masks.items():
        if shapes.get(leaf) != mask.shape:
            raise Refusal(f"{name} is of another network than {onto}: {leaf}")
    return masks


def open_any(path: epath.Path, wishes: Wishes) -> tuple[tickets.Ticket, str]:
    """A ticket, or the ticket that a file of another suite makes, and what it is."""
    name = os.fspath(path)
    if not path.exists() or path.is_dir() or not paths.is_single(path):
        wishes.only((), f"{name}, which is a ticket")
        return tickets.read_ticket(path), "a ticket"
    return ticket_of(path.read_bytes(), name, wishes)


def ticket_of(content: bytes, name: str, wishes: Wishes) -> tuple[tickets.Ticket, str]:
    """The ticket of a file with this content, and what it is; `name` is for messages."""
    what: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest()}
    if survival.is_survival(content):
        wishes.only(("onto", "cycle"), f"{name}, which is the map of a chain")
        found = survival.from_bytes(content, name)
        what |= {"format": f"the mask of cycle {wishes.cycle} of a chain"}
        onto = _onto(wishes, name)
        masks = masks_of_cycle(found, wishes.cycle, onto, name)
        return put_masks(masks, onto, what, name), what["format"]
    if single_files.recognises(content):
        ticket = tickets.ticket_of_file(content, name)
        original = ticket.meta.get("imported", {}).get("format") == "original"
        kind = "a checkpoint of the original suite" if original else "a compact ticket"
        wishes.only((), f"{name}, which is {kind}")
        return ticket, kind
    parts = take_apart(read_content(content, name))
    ours = parts.meta is not None
    taken = (() if ours else OF_WEIGHTS) if parts.tensors else ("onto",)
    wishes.only(taken, f"{name}, which is {parts.note}")
    if parts.tensors:
        return import_parts(parts, wishes, name, what["sha256"]), parts.note
    what |= {"format": parts.note}
    onto = _onto(wishes, name)
    return put_masks(masks_of_list(parts, onto, name), onto, what, name), parts.note


def _onto(wishes: Wishes, name: str) -> str:
    if wishes.onto is None:
        raise Refusal(f"{name} has masks and no weights: name a ticket that has them, --onto=TICKET")
    return wishes.onto


def check_place(folder: epath.Path, is_ours: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuses a folder of a run, and one whose `last.ckpt` is a ticket that is not `is_ours(its meta)`."""
    tickets.refuse_inside(folder)
    parts = (paths.TICKETS, paths.STATES, paths.CHAIN_STATES, paths.DAMAGED)
    run = folder.parent if folder.name in parts else folder
    if (run / records.CONFIG).exists():
        raise Refusal(f"{run} is the folder of a run: choose another")
    last = folder / paths.LAST
    if last.exists() and not is_ours(tickets.read_meta(last)):
        raise Refusal(f"{last} is another ticket: choose another folder")


def write(
    folder: epath.Path, ticket: tickets.Ticket, is_ours: Callable[[Mapping[str, Any]], bool] | None = None
) -> epath.Path:
    """The ticket in a folder of its own, under the name `last.ckpt`; what it replaces `is_ours`."""
    last = folder / paths.LAST

    def same(meta: Mapping[str, Any]) -> bool:
        return meta["digest"] == ticket.digest

    check_place(folder, is_ours or same)
    if not (last.exists() and same(tickets.read_meta(last))):
        with locks.locked([folder]):
            where, _ = tickets.write_ticket(
                folder, ticket.params, ticket.masks, ticket.statistics, ticket.meta
            )
            tickets.name_ticket(folder, paths.LAST, where)
    return last
