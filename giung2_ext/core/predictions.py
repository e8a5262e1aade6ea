"""What is kept of a network's answer to each example: enough for every score, in a few bytes.

Among `classes` alone, logits of all others count as minus infinity: the answer is the most probable of
those classes and probabilities are renormalised over them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

TOP = 5


def summarise(logits_BxC: Array, labels_B: Array, classes: Sequence[int] | None = None) -> dict[str, Array]:
    """The five likeliest classes, -log p(label), the greatest probability, and the Brier score's term."""
    logits_BxC = logits_BxC.astype(jnp.float32)
    count = logits_BxC.shape[1]
    if classes is not None:
        among = np.zeros(count, bool)
        among[list(classes)] = True
        logits_BxC = jnp.where(among, logits_BxC, -jnp.inf)
        count = len(classes)
    logp_BxC = jax.nn.log_softmax(logits_BxC)
    p_BxC = jnp.exp(logp_BxC)
    nll_B = -jnp.take_along_axis(logp_BxC, labels_B[:, None], axis=1)[:, 0]
    _, top_BxK = jax.lax.top_k(logits_BxC, min(TOP, count))  # equal logits: the lowest class first
    return {
        "top": top_BxK,
        "nll": nll_B,
        "confidence": p_BxC.max(axis=1),
        "brier": (p_BxC**2).sum(axis=1) - 2 * jnp.exp(-nll_B) + 1,  # of sum over classes (p - y)^2
    }
