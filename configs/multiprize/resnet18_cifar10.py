"""Multi-Prize tickets of ResNet-18 on CIFAR-10 at density 0.2 (Diffenderfer & Kailkhura 2021).

    python scripts/train.py --config=configs/multiprize/resnet18_cifar10.py --norms --data_root=DIR \\
        --seed=0 --save=save/multiprize/resnet18

(https://arxiv.org/abs/2103.09377.) Binary weights; BatchNorm learns nothing without `--norms` ("+BN").
`--binary` makes the activations binary too, also those after a block's sum, with Adam. The arguments are
those of conv_cifar10.py. Hardware: one GPU or a TPU core; not run: no accelerator. Expected (cited: the
authors' repository): 94.66%, +BN 94.8%, dense 93.02%. It counts 2.6 million weights where a fifth is 2.23.
Last verified: never run; built 2026-11-22.
"""

import pathlib

from giung2_ext.experiments.config import load_config

CONV = pathlib.Path(__file__).with_name("conv_cifar10.py")
EPOCH = 45_000 // 256  # steps


def get_config(
    density: float = 0.2,
    epochs: int = 100,
    weights: str = "kaiming_normal",
    scale_fan: str = "kept",
    binary: bool = False,
    norms: bool = False,
    edge_popup: bool = False,
    smoke: bool = False,
):
    given = f"density={density},weights={weights},scale_fan={scale_fan},edge_popup={edge_popup}"
    c = load_config(f"{CONV}:{given},smoke={smoke}").unlock()
    c.model = dict(name="resnet", depth=18, stem="small", head="zero", padding="torch", zero_init=False)
    c.model.activation = "binary" if binary else "relu"
    c.method.others = norms
    c.optim.weight_decay = 5e-4
    if binary:
        c.optim.name, c.optim.weight_decay = "adam", 0.0
    if smoke:
        c.model.planes = (8, 16, 32, 64)
    else:
        c.feed.batch_size = 256
        c.optim.ni = epochs * EPOCH
        c.evaluation.every = EPOCH
    return c
