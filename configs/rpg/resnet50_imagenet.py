"""RPG in ResNet-50 on ImageNet at densities 0.2, 0.1, 0.05 and 0.02 (Tian et al. 2023).

    python scripts/train.py --config=configs/rpg/resnet50_imagenet.py --density=0.1 --data_root=DIR \\
        --seed=0 --matching_ckpt=save/pretrain/resnet50_imagenet/best_acc.ckpt --mixed_precision=true \\
        --save=save/rpg/resnet50

(https://arxiv.org/abs/2311.17493.) The published rows start from trained weights; without --matching_ckpt
it is a row "from scratch" (its rank weight and tolerance are not published: those of the same density). 100
epochs of 1,024 images (125,100 steps), SGD at 0.4, warm-up of 5 epochs and a cosine, decay 1e-4, label
smoothing 0.1; BatchNorm and |gradient| in groups of 128 images, the published GPU's share. Not as
published: decay on kernels alone (there of everything not named "bn"), the rate of a step is that of its
beginning, 10,000 training images are held out, on which the best ticket of the final density is chosen
(there: on test). Hardware: 8 GPUs or TPU cores; not run: no accelerator. Expected (cited: the authors'
repository), top-1 %:

density   rank_weight   tolerance   from trained weights   from scratch
0.2       0.5           0.2         76.66
0.1       0.5           0.1         75.80                  75.35
0.05      3             0.2         74.05                  73.62
0.02      4             0.2         69.57

Last verified: never run; built 2026-11-27.
"""

import pathlib

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import load_config

TRAINED = pathlib.Path(__file__).parents[1] / "pretrain/resnet50_imagenet.py"
ROWS = {0.2: (0.5, 0.2), 0.1: (0.5, 0.1), 0.05: (3.0, 0.2), 0.02: (4.0, 0.2)}  # rank weight, tolerance


def get_config(density: float = 0.1, rank_in: str = "grow", epochs: int = 100, smoke: bool = False):
    if density not in ROWS:
        raise Refusal(
            f"--density={density:g} is no published row ({', '.join(map(str, ROWS))}): choose one, and set "
            "--config.method.density, .rank_weight and .tolerance"
        )
    c = load_config(f"{TRAINED}:smoke={smoke}").unlock()
    weight, tolerance = ROWS[density]
    c.method = dict(name="rpg", density=density, rank_weight=weight, tolerance=tolerance, rank_in=rank_in)
    c.masks.prunable = "kernels"
    c.start.batch_stats = "rewind"
    c.optim.decay_on = "kernels"
    c.optim.label_smoothing = 0.1
    c.optim.lr, c.optim.warmup = 0.4, 0.05
    if smoke:
        c.method.every, c.method.ramp = 2, 0.7
    else:
        c.method.group = c.model.group_size = 128
        c.feed.batch_size = 1024
        c.optim.ni = epochs * (1_281_167 // 1024)
    return c
