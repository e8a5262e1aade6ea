"""A pickled list of masks, one for every parameter called `weight`, as ports of the 2019 experiments do it.

Without weights: they are put onto those of a ticket. Scales of normalisation are in the list too, whole.
"""

import numpy as np

from giung2_ext.storage.importers import _parts


def build(content: _parts.Content) -> _parts.Parts | None:
    found = content.top
    if not isinstance(found, list | tuple) or not found:
        return None
    if not all(isinstance(mask, np.ndarray) and mask.dtype != object for mask in found):
        return None
    return _parts.Parts(
        {},
        [_parts.bits(f"{i} of {content.name}", mask) for i, mask in enumerate(found)],
        {},
        (),
        (),
        f"{len(found)} masks without weights",
    )
