"""A fixed mask: within one cycle of iterative magnitude pruning only the kept weights train.

Frankle & Carbin 2019 (https://arxiv.org/abs/1803.03635), Frankle et al. 2020
(https://arxiv.org/abs/1912.05671). With coordinate-wise optimizers a pruned weight and its slots
stay exactly 0: its gradient is 0, its decay is 0.
"""

from giung2_ext.core import masks as masking
from giung2_ext.core.method import Method


def build() -> Method:
    return Method(
        init=lambda key, params, masks: (masking.apply(masks, params), masks),
        weights=lambda trainable, masks: masking.apply(masks, trainable),
        masks=lambda trainable, masks: masks,
    )
