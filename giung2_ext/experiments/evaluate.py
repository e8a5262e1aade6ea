"""Judges a ticket on a named split; everything but the data's place comes from the ticket."""

import functools

import jax
from etils import epath

import giung2_ext.data.sources
from giung2_ext.core import accounting, discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.data import resident
from giung2_ext.experiments.setup import build_model, count_uses, judged_in
from giung2_ext.storage import tickets
from giung2_ext.training.step import evaluate_sums


def evaluate_ticket(ckpt: str, split: str, data_root: str | None, batch_size: int) -> dict[str, float]:
    """Accuracy and mean loss, each example counted once; prints both with all denominators."""
    ticket = tickets.read_ticket(epath.Path(ckpt))
    meta = ticket.meta
    data, model = dict(meta["data"]), dict(meta["model"])
    source = discovery.build(
        giung2_ext.data.sources, "data source", data.pop("name"), root=data_root, **data
    )
    examples = source.split(split)
    if list(examples.images.shape[1:]) != meta["image_shape"] or source.num_classes != meta["num_classes"]:
        raise Refusal(
            f"{ckpt} was trained on images of {meta['image_shape']} in {meta['num_classes']} classes; "
            f"the {split} split has {list(examples.images.shape[1:])} in {source.num_classes}"
        )
    trained_in = meta.get("precision", "float32")
    precision = judged_in(trained_in)
    network = build_model(model.pop("name"), meta["num_classes"], precision, model)
    batches = resident.evaluation_batches(examples, batch_size)
    sums = jax.device_get(
        jax.jit(functools.partial(evaluate_sums, network))(ticket.params, ticket.statistics, batches)
    )
    seen, hits = int(sums["seen"]), int(sums["correct"])
    scores = {"accuracy": hits / seen, "loss": float(sums["loss"]) / seen, "seen": seen}
    shapes, _, uses = count_uses(network, meta["image_shape"])
    layers = {name: count for name, (count, _) in meta["layers"].items()}
    weights, flops = accounting.totals(accounting.layers(shapes, layers, uses), uses)
    print(
        f"{ckpt} (ticket {ticket.digest[:16]}, step {meta['step']:,}): {meta['model']['name']} on "
        f"{meta['data']['name']} in {precision} (trained in {trained_in})\n"
        f"{split}: accuracy {100 * hits / seen:.2f}% ({hits:,} of {seen:,}), loss {scores['loss']:.4f}\n"
        f"{accounting.describe_weights(weights)}\n"
        f"{accounting.describe_flops(flops)}"
    )
    return scores
