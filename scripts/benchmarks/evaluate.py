"""Images a second that evaluate.py judges, decoding included, and that batches change no answer.

A ResNet with random weights on every image below DIR (wnid folders), as scripts/evaluate.py runs it,
against the same network fed by Pillow, one batch after another.
"""

import io
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import _jpegs
from giung2_ext.core import masks as masking
from giung2_ext.data.sources import _imagenet
from giung2_ext.experiments.building import build_model
from giung2_ext.experiments.config import default_config
from giung2_ext.experiments.judging import Judge, open_dataset
from giung2_ext.storage import tickets
from giung2_ext.training.state import init_variables, seed_key
from giung2_ext.training.step import network


def make(smoke, data_root):
    if smoke and data_root is None:
        data_root = tempfile.mkdtemp()
        for i, wnid in enumerate(("n01440764", "n01443537")):
            folder = pathlib.Path(data_root) / wnid
            folder.mkdir()
            for k in range(4):
                (folder / f"{k}.JPEG").write_bytes(_jpegs.make(10 * i + k))
    _jpegs.read(smoke, data_root, "evaluate")  # or says what is missing
    accelerator = jax.default_backend() != "cpu"
    depth, size = (50, 224) if accelerator else (18, 64 if smoke else 112)
    root = pathlib.Path(tempfile.mkdtemp())
    (root / "sketch").symlink_to(pathlib.Path(data_root).resolve())
    where = default_config().placement
    where.data_root = str(root)
    ticket = make_ticket(root, depth, size)
    batches = (4, 3) if smoke else (50, 7, 100)
    judges = {batch: Judge(str(ticket), batch, where) for batch in batches}
    own = judges[batches[0]].meta["data"]
    dataset = open_dataset("imagenet_sketch", own, "timm", str(root))

    found = {batch: judge.answer(dataset) for batch, judge in judges.items()}
    first = found[batches[0]]
    for batch in batches[1:]:
        assert np.array_equal(found[batch]["top"][:, 0], first["top"][:, 0])
        assert np.array_equal(found[batch]["ids"], first["ids"])
    worst = max(float(np.abs(found[b]["nll"] - first["nll"]).max()) for b in batches)
    plain = one_by_one(judges[batches[0]], dataset.records, size, batches[0])
    agree = np.mean(plain() == first["top"][:, 0])
    assert agree == 1, agree

    contenders = {
        f"batches of {batch}": lambda judge=judge: judge.answer(dataset) for batch, judge in judges.items()
    }
    contenders |= {"Pillow, then the network": plain}
    notes = [
        f"ResNet-{depth} at {size}x{size}, {len(first['ids'])} images, pipeline timm; all have the "
        f"same top-1 at batches of {', '.join(map(str, batches))}, -log p differs by {worst:.1e} at most"
    ]
    return [(contenders, {}, notes, ("images", len(first["ids"])))]


def make_ticket(root, depth, size):
    model = build_model("resnet", 1000, "float32", {"depth": depth, "head": "biased"})
    params, statistics = jax.jit(lambda key: init_variables(model, key, (size, size, 3)))(seed_key(0))
    statistics |= {"image_stats": {"m": np.float32(_imagenet.MEAN), "s": np.float32(_imagenet.STD)}}
    lineage = {
        "model": {"name": "resnet", "depth": depth, "head": "biased"},
        "data": {"name": "imagenet2012", "image_size": size},
        "num_classes": 1000,
        "image_shape": [size, size, 3],
        "step": 0,
        "parents": {},
    }
    masks = masking.dense(params, "conv")
    path, _ = tickets.write_ticket(_epath(root), params, masks, statistics, lineage)
    return path


def _epath(path):
    from etils import epath

    return epath.Path(path)


def one_by_one(judge, records, size, batch):
    """Top-1 answers by Pillow and the bare network."""
    params, statistics = judge.ticket.params, judge.ticket.statistics
    run = jax.jit(lambda images: network(judge.model, params, statistics, images, train=False).argmax(1))

    def pixels(data):
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert("RGB")
            short, least = int(size / 0.875), min(image.size)
            sides = tuple(short if s == least else int(short * s / least) for s in image.size)
            image = np.asarray(image.resize(sides, Image.Resampling.BICUBIC))
        top, left = (round((side - size) / 2) for side in image.shape[:2])
        return image[top : top + size, left : left + size]

    def answer():
        found = []
        for start in range(0, len(records), batch):
            images = [pixels(records[i].image) for i in range(start, min(start + batch, len(records)))]
            padding = np.zeros((batch - len(images), size, size, 3), np.uint8)
            answers = run(jnp.asarray(np.concatenate([np.stack(images), padding])))
            found.append(np.asarray(answers)[: len(images)])
        return np.concatenate(found)

    return answer
