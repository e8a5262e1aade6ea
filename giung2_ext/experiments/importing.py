"""From a file of another suite to a ticket: a name that is left over on either side is refused."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import numpy as safetensors

import giung2_ext.storage.importers
from giung2_ext.core import discovery, trees
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import Config, complete, default_config
from giung2_ext.experiments.setup import build_model, count_uses
from giung2_ext.models import _torch_names
from giung2_ext.storage import paths, single_files, survival, tickets, torch_files
from giung2_ext.storage.importers._parts import Arrays, Content, Parts

FEW = 5  # names in a message
KERNELS = ("conv", "dense", "kernel")  # kinds of entries that have masks
RULES = ("conv", "body", "inner", "blocks", "kernels")  # the first that has all masked leaves
SMALL = {10: "cifar10", 100: "cifar100"}  # what networks for small images are trained on, by their classes
SHAPES = {
    **{name: [32, 32, 3] for name in ("cifar10", "cifar100")},
    **{name: [28, 28, 1] for name in ("mnist", "fashion_mnist")},
    "imagenet2012": [224, 224, 3],
}


class Wishes(NamedTuple):
    """What the user says that a file does not."""

    data_name: str | None = None
    prunable: str | None = None
    onto: str | None = None
    cycle: int | None = None  # of the map of a chain


def read_content(content: bytes, name: str) -> Content:
    """A file of PyTorch, safetensors or pickled arrays; what is in it is not run."""
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        return _safetensors(content, name)
    return Content(name, *torch_files.read(content, name))


def _safetensors(content: bytes, name: str) -> Content:
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        extra = {key: text.encode() for key, text in header.get("__metadata__", {}).items()}
        return Content(name, dict(safetensors.load(content)), extra)
    except Exception as error:  # a damaged file raises a dozen kinds
        raise Refusal(f"{name} cannot be read as safetensors ({error})") from error


def take_apart(content: Content) -> Parts:
    """The parts of a file, by the one importer that knows it."""
    package = giung2_ext.storage.importers
    for name in discovery.names(package):
        parts = discovery.maker(package, "importer", name)(content)
        if parts is not None:
            return parts
    raise Refusal(
        f"{content.name}: no importer knows what this is; known: {', '.join(discovery.names(package))} "
        "(a state_dict, alone or as state_dict=…, or a list of masks)"
    )


def described(parts: Parts, wishes: Wishes, name: str) -> dict[str, Any]:
    """Model, data and what follows from them, as a ticket's meta has them."""
    if parts.meta is not None:
        return {key: parts.meta[key] for key in ("model", "data", "num_classes", "image_shape")}
    heads = ["fc.weight", "classifier.weight", "classifier.6.weight"]
    heads += sorted((k for k in parts.tensors if re.fullmatch(r"linear\.\d+\.weight", k)), reverse=True)
    head = next((parts.tensors[key] for key in heads if key in parts.tensors), None)
    if head is None:
        raise Refusal(f"{name}: no classifier; looked for {', '.join(heads)}")
    classes = len(head)
    large = parts.model.get("stem") == "large" or parts.model.get("head") == "dense"
    data = wishes.data_name or ("imagenet2012" if large and classes == 1000 else None)
    data = data or (None if large else SMALL.get(classes))
    if data is None or data not in SHAPES:
        raise Refusal(
            f"{name} has {classes} classes: say which set it is of, --data_name=NAME, NAME one of "
            f"{', '.join(SHAPES)}" + (f"; got {data}" if data else "")
        )
    config = default_config().unlock()
    config.model, config.data = Config(parts.model), Config(dict(name=data))
    config = complete(config)
    if "mean" in config.data and len(parts.mean) == SHAPES[data][-1]:
        config.data.mean, config.data.std = tuple(parts.mean), tuple(parts.std)
    plain = json.loads(json.dumps({"model": config.model.to_dict(), "data": config.data.to_dict()}))
    return plain | {"num_classes": classes, "image_shape": SHAPES[data]}


def pixels_of(parts: Parts, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Mean and std of the images: the file's, or else those of the set."""
    mean, std = parts.mean, parts.std
    if len(mean) != about["image_shape"][-1]:
        mean, std = about["data"]["mean"], about["data"]["std"]
    return {"m": np.asarray(mean, np.float32), "s": np.asarray(std, np.float32)}


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f", … ({len(listed)} in all)" if len(listed) > FEW else ""
    return ", ".join(listed[:FEW]) + more


class Network(NamedTuple):
    """What a file must fit."""

    entries: list[_torch_names.Entry]
    leaves: dict[str, tuple[int, ...]]  # of parameters
    statistics: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Network":
        """`about` is a ticket's meta, or the part of it that says what network it is."""
        options = dict(about["model"])
        model = build_model(options.pop("name"), about["num_classes"], "float32", options)
        found = count_uses(model, about["image_shape"])[:2]
        trees_of = (found[0], found[1].get("batch_stats", {}))
        leaves, statistics = (
            {name: tuple(leaf.shape) for name, leaf in trees.named_leaves(tree).items()}
            for tree in trees_of
        )
        named = _torch_names.entries(about["model"], leaves, statistics, about["image_shape"])
        return cls(named, leaves, statistics)

    def shape(self, entry: _torch_names.Entry) -> tuple[int, ...]:
        return (self.statistics if entry.kind == "statistic" else self.leaves)[entry.ours]


def rename(tensors: Arrays, network: Network, name: str) -> tuple[Arrays, Arrays]:
    """Parameters and statistics in our names and layouts.

    Where a suite has no bias at all, or no parameter in its normalisations, they are those that do nothing.
    """
    left, missing = dict(tensors), []
    found: tuple[Arrays, Arrays] = ({}, {})
    there = {entry.kind for entry in network.entries if entry.theirs in tensors}
    for entry in network.entries:
        shape, group = network.shape(entry), found[entry.kind == "statistic"]
        tensor = left.pop(entry.theirs, None)
        if tensor is None and entry.kind in ("norm", "bias") and entry.kind not in there:
            group[entry.ours] = np.full(shape, entry.ours.endswith("scale"), np.float32)
        elif tensor is None:
            missing.append(entry.theirs)
        else:
            group[entry.ours] = _fitting(entry, tensor, shape, name).astype(np.float32)
    if missing or left:
        told = [f"it lacks {_names(missing)}"] if missing else []
        told += [f"it has {_names(left)}, which the network has not"] if left else []
        raise Refusal(f"{name}: {'; '.join(told)}")
    return found


def _fitting(
    entry: _torch_names.Entry, tensor: np.ndarray, shape: tuple[int, ...], name: str
) -> np.ndarray:
    leaf = _torch_names.from_torch(entry, tensor)
    if leaf.shape != shape:
        raise Refusal(
            f"{name}: {entry.theirs} has shape {tensor.shape}, of which no leaf of {shape} can be made"
        )
    return np.ascontiguousarray(leaf)


def place_masks(parts: Parts, network: Network, name: str) -> Arrays:
    """The masks in our names and layouts."""
    weights = {entry.theirs: entry for entry in network.entries if entry.kind in KERNELS}
    given = parts.masks
    if not isinstance(given, Mapping):
        if len(given) != len(weights):
            raise Refusal(f"{name} has {len(given)} masks of weights, the network {len(weights)} weights")
        given = {key: mask for key, mask in zip(weights, given, strict=True) if mask is not None}
    foreign = given.keys() - weights.keys()
    if foreign:
        raise Refusal(f"{name} has masks of {_names(foreign)}, which the network has not")
    return {
        weights[key].ours: _fitting(weights[key], mask, network.shape(weights[key]), name)
        for key, mask in given.items()
    }


def choose_rule(params: trees.Tree, masked: Iterable[str], wanted: str | None, name: str) -> str:
    """The named rule of prunable leaves, as narrow as the masks allow."""
    masked = set(masked)
    for rule in [wanted] if wanted else RULES:
        prunable = {n for n, m in trees.named_leaves(masking.dense(params, rule)).items() if m is not None}
        if prunable and masked <= prunable:
            return rule
    raise Refusal(
        f"{name}: no rule of prunable leaves ({wanted or ', '.join(RULES)}) has all of {_names(masked)}"
    )


def assemble(
    params: Arrays, given: Arrays, wanted: str | None, name: str
) -> tuple[trees.Tree, trees.Tree, str]:
    """Parameters, 0 where pruned, and masks as trees, with the rule of what is prunable."""
    rule = choose_rule(_nest(params), given, wanted, name)
    dense = trees.named_leaves(masking.dense(_nest(params), rule))
    masks = {n: None if mask is None else given.get(n, np.asarray(mask)) for n, mask in dense.items()}
    return _nest(_zeroed(params, masks)), _nest(masks), rule


def _zeroed(params: Arrays, masks: Mapping[str, Any]) -> Arrays:
    return {n: w if masks[n] is None else np.where(masks[n], w, np.float32(0)) for n, w in params.items()}


def _nest(flat: Mapping[str, Any]) -> trees.Tree:
    return traverse_util.unflatten_dict(flat, sep="/")


def import_parts(parts: Parts, wishes: Wishes, name: str, sha256: str) -> tickets.Ticket:
    """The ticket that a file's parts make."""
    about = described(parts, wishes, name)
    network = Network.of(about)
    flat, found = rename(parts.tensors, network, name)
    given = place_masks(parts, network, name)
    statistics = {"image_stats": pixels_of(parts, about)} | ({"batch_stats": _nest(found)} if found else {})
    if parts.meta is None:
        params, masks, rule = assemble(flat, given, wishes.prunable, name)
        return tickets.make_ticket(params, masks, statistics, _lineage(parts, about, rule, sha256))
    own = {key: value for key, value in parts.meta.items() if key != "exported"}
    masks = {leaf: given.get(leaf) for leaf in flat}
    ticket = tickets.make_ticket(*map(_nest, (_zeroed(flat, masks), masks)), statistics, own)
    if ticket.digest != parts.meta["digest"]:
        raise Refusal(
            f"{name} is not the ticket {parts.meta['digest'][:16]} that it was exported from: it was "
            "changed, or kept weights are exactly 0 (then export it with --masks=true)"
        )
    return ticket


def _lineage(parts: Parts, about: dict[str, Any], rule: str, sha256: str) -> dict[str, Any]:
    return {
        "seed": None,
        "step": parts.step,
        "parents": {},
        "imported": {"format": parts.note, "sha256": sha256},
        "prunable_rule": rule,
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
    wanted = base.meta["prunable_rule"] if same else None
    params, masks, rule = assemble(trees.named_leaves(base.params), given, wanted, name)
    lineage = base.meta | {"parents": {"weights": base.digest}, "imported": what, "prunable_rule": rule}
    return tickets.make_ticket(params, masks, base.statistics, lineage)


def masks_of_list(parts: Parts, onto: str, name: str) -> Arrays:
    if not all(mask.all() for mask in parts.masks if mask is not None and mask.ndim == 1):
        raise Refusal(f"{name} prunes scales of normalisation, which no ticket does")
    of_weights = parts._replace(masks=[m for m in parts.masks if m is None or m.ndim > 1])
    return place_masks(of_weights, Network.of(tickets.read_meta(onto)), name)


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
        return tickets.read_ticket(path), "a ticket"
    return ticket_of(path.read_bytes(), name, wishes)


def ticket_of(content: bytes, name: str, wishes: Wishes) -> tuple[tickets.Ticket, str]:
    """The ticket of a file with this content, and what it is; `name` is for messages."""
    what: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest()}
    if survival.is_survival(content):
        found = survival.from_bytes(content, name)
        what |= {"format": f"the mask of cycle {wishes.cycle} of a chain"}
        onto = _onto(wishes, name)
        masks = masks_of_cycle(found, wishes.cycle, onto, name)
        return put_masks(masks, onto, what, name), what["format"]
    if single_files.recognises(content):
        ticket = tickets.ticket_of_file(content, name)
        original = ticket.meta.get("imported", {}).get("format") == "original"
        return ticket, "a checkpoint of the original suite" if original else "a compact ticket"
    parts = take_apart(read_content(content, name))
    if parts.tensors:
        return import_parts(parts, wishes, name, what["sha256"]), parts.note
    what |= {"format": parts.note}
    onto = _onto(wishes, name)
    return put_masks(masks_of_list(parts, onto, name), onto, what, name), parts.note


def _onto(wishes: Wishes, name: str) -> str:
    if wishes.onto is None:
        raise Refusal(f"{name} has masks and no weights: name a ticket that has them, --onto=TICKET")
    return wishes.onto


def write(folder: epath.Path, ticket: tickets.Ticket) -> epath.Path:
    """The ticket in a folder of its own, under the name `last.ckpt`."""
    tickets.refuse_inside(folder)
    last = folder / paths.LAST
    if (folder / "config.json").exists():
        raise Refusal(f"{folder} is the folder of a run: choose another")
    if last.exists() and tickets.read_meta(last)["digest"] != ticket.digest:
        raise Refusal(f"{last} is another ticket: choose another folder")
    if not last.exists():
        place, _ = tickets.write_ticket(folder, ticket.params, ticket.masks, ticket.statistics, ticket.meta)
        tickets.name_ticket(folder, paths.LAST, place)
    return last
