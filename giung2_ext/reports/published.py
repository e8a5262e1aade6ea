"""The published curve of the original suite: ResNet-50 on ImageNet, 20% pruned a cycle.

Cited: that suite's own table of results; rewound to step 16,000, one seed, best_acc.ckpt as selected on
ImageNet's validation set, batch 2048 on 8 TPUv3 cores. Cycle, density of the
convolutions, top-1 in percent.
"""

from typing import Any

NAME = "published"
ABOUT = "published: ResNet-50 of the original suite, one seed, selected on ImageNet's validation set"
SETS = ("imagenet2012", "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch")
TABLE = (
    (0, 1.000, 76.06, 63.69, 35.50, 1.93, 23.85),
    (4, 0.410, 76.58, 64.02, 35.09, 2.37, 23.82),
    (7, 0.210, 76.54, 64.14, 34.89, 2.31, 23.52),
    (10, 0.107, 75.87, 63.19, 34.19, 2.09, 22.92),
    (13, 0.055, 74.77, 62.08, 32.60, 1.61, 21.37),
    (16, 0.028, 72.62, 59.25, 31.22, 1.41, 19.92),
    (18, 0.018, 70.52, 58.03, 30.08, 1.33, 18.57),
)


def rows() -> list[dict[str, Any]]:
    """One row for every cycle and set."""
    return [
        {"series": NAME, "cycle": cycle, "density": density, "dataset": name, "top1": value}
        for cycle, density, *values in TABLE
        for name, value in zip(SETS, values, strict=True)
    ]
