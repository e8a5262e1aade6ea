"""The report of a long chain: 19 cycles of ResNet-50, judged on five sets, from made-up records.

    python scripts/benchmark_report.py [--at=DIR]

Prints the seconds that the page, its figures and tables take, the peak memory of the process that writes
them, and the size of the page. The records take 2 GB of disk, and are made first, in another process.
"""

import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from etils import epath

from giung2_ext.reports import page, published
from giung2_ext.storage import paths, predictions, records, tickets

CYCLES, EXAMPLES, STAGES = 19, 50_000, ((64, 3), (128, 4), (256, 6), (512, 3))


def shapes():
    """The 53 convolutions of ResNet-50 and its classifier."""
    found, inputs = {"Conv_0": (7, 7, 3, 64)}, 64
    for stage, (planes, blocks) in enumerate(STAGES):
        for block in range(blocks):
            place = f"Block_{stage}_{block}"
            found[f"{place}/a"], found[f"{place}/b"] = (1, 1, inputs, planes), (3, 3, planes, planes)
            found[f"{place}/c"] = (1, 1, planes, 4 * planes)
            if block == 0:
                found[f"{place}/shortcut"] = (1, 1, inputs, 4 * planes)
            inputs = 4 * planes
    return found | {"cls": (2048, 1000)}


def make_cycle(run, cycle, weights, draws, draw, previous):
    masks = {n: None if n == "cls" else {"kernel": draws[n] < 0.8**cycle} for n in weights}
    params = {
        n: {"kernel": w if masks[n] is None else np.where(masks[n]["kernel"], w, 0)}
        for n, w in weights.items()
    }
    masks = {n: {"kernel": None} if m is None else m for n, m in masks.items()}
    parents = {"previous": previous} if previous else {}
    path, meta = tickets.write_ticket(run, params, masks, {}, {"seed": 0, "parents": parents})
    tickets.name_ticket(run, paths.best("accuracy"), path)
    score = lambda less: {"accuracy": 0.76 - less, "loss": 1.0, "seen": EXAMPLES}  # noqa: E731
    scores = {w: {s: score(0.003 * cycle) for s in ("holdout", "test")} for w in ("start", "best", "last")}
    result = {key: meta[key] for key in ("kept", "prunable", "parameters", "layers", "seed", "parents")}
    result |= dict(scores=scores, selected_on="holdout", steps=48_000, best_step=47_000)
    records.write_result(run, result | {"tickets": dict(best=meta["digest"], last=meta["digest"])})
    records.record_session(run, {"seed": 0}, {})
    steps = range(0, 48_001, 500)
    rows = [
        {"step": s, "split": p, "accuracy": s / 7e4, "loss": 1.0}
        for s in steps
        for p in ("holdout", "test")
    ]
    records.MetricsLog(run, 0).write(rows)
    for name in published.SETS:
        judge(run, meta["digest"], name, 0.76 - 0.003 * cycle, draw)
    return meta["digest"]


def judge(run, digest, name, accuracy, draw):
    labels = draw.integers(0, 1000, EXAMPLES)
    top = np.stack([np.where(draw.random(EXAMPLES) < accuracy, labels, 0), *[labels] * 4], 1).astype(
        np.int16
    )
    arrays = {"ids": np.arange(EXAMPLES), "labels": labels, "top": top}
    arrays["confidence"] = draw.random(EXAMPLES).astype(np.float32)
    spread = {"top1": [accuracy, accuracy - 0.004, accuracy + 0.004], "ece": [0.03, 0.02, 0.04]}
    about = {"dataset": name, "pipeline": "tf", "images": "50000:a", "ticket": digest, "seen": EXAMPLES}
    predictions.write(predictions.folder_in(run, digest), about | {"scores": {"all": spread}}, arrays)


def make(folder):
    draw = np.random.default_rng(0)
    weights = {n: draw.normal(0, 0.02, s).astype(np.float32) for n, s in shapes().items()}
    draws = {n: draw.random(s, np.float32) for n, s in shapes().items()}
    digest = ""
    for cycle in range(CYCLES):
        digest = make_cycle(folder / paths.cycle(cycle), cycle, weights, draws, draw, digest)


def measure(folder):
    start = time.perf_counter()
    written = page.write_page([folder], folder / paths.REPORT)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = (written.folder / page.PAGE).stat().length
    told = f"{seconds:.1f} s, {peak:.2f} GiB at the peak, a page of {size / 1e6:.2f} MB"
    print(f"{len(written.charts)} charts: {told}")


def main():
    words = dict(word[2:].split("=") for word in sys.argv[1:])
    if "part" in words:
        {"make": make, "measure": measure}[words["part"]](epath.Path(words["at"]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        at = words.get("at", f"{temporary}/chain")
        for part in ("make", "measure"):
            subprocess.run([sys.executable, __file__, f"--part={part}", f"--at={at}"], check=True)


if __name__ == "__main__":
    main()
