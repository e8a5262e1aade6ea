"""A profile of a few steps, for TensorBoard or Perfetto."""

import jax
from etils import epath


class Trace:
    """Steps `first` to `last`: the loops of all processes halt at both, and one process `writes`."""

    def __init__(self, folder: epath.Path, first: int, steps: int, writes: bool = True):
        self.folder, self.first, self.last, self.writes = folder, first, first + steps, writes
        self._on = False

    def reach(self, step: int, state: object) -> None:
        """Begins or ends at this step, once what was dispatched before is done."""
        if not self.writes:
            return
        if step == self.first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self._on = True
        elif self._on and step >= self.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Of a run that ends within these steps too."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
