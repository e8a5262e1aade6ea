"""Many trials of one network as one program: a leading member axis on the state.

It has one meaning, member i = the solo run i, and two strategies. `map` runs members one after
another inside the program, each with the arithmetic of the solo run (bit for bit on CPU); `vmap`
batches them. Both spread the members over the devices. `auto` goes by a fixed table (`choose`): on a CPU
members are mapped, elsewhere dense ones are vmapped and those with convolutions mapped, as vmap makes
grouped convolutions of them (both unmeasured there). Measured on two CPU cores with a device each
(2026-11-21, masks, batch 60, Adam), member-steps/s: LeNet-300-100 1,182 alone, 1,447 for 5 and 1,763 for 20
members mapped, 1,197 and 1,351 vmapped; Conv-2 4.0 alone, 6.5 for 20 mapped; 2 mapped 1.3 times as fast as
2 vmapped.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from giung2_ext.core.errors import unknown
from giung2_ext.training.sharding import Layout, put, read_mesh

Tree = Any
STRATEGIES = ("auto", "map", "vmap")


def stack(members: list[Tree]) -> Tree:
    """Equal trees as one with a leading member axis."""

    def join(*leaves: Any) -> Any:
        if jax.dtypes.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jnp.stack(leaves)
        return np.stack(leaves)

    return jax.tree.map(join, *jax.device_get(members))


def choose(platform: str, convolutions: bool) -> str:
    """What `auto` is; never a timing, as the choice changes the last bits of results."""
    return "map" if convolutions or platform == "cpu" else "vmap"


class Population:
    """How `members` run: one on a whole `mesh`, several with a device each, in turn.

    With a mesh the member's batch is cut over it and its state lies there by the layout's rules, with no
    axis of members. Without one a lone member of a single process has one device, and several
    processes always use all of theirs. `convolutions` says whether the network has any.
    """

    def __init__(
        self,
        members: int,
        strategy: str = "auto",
        mesh: Mesh | None = None,
        devices: list[Any] | None = None,
        convolutions: bool = False,
    ):
        if strategy not in STRATEGIES:
            raise unknown("population strategy", strategy, STRATEGIES)
        devices = jax.devices() if devices is None else devices
        alone = jax.process_count() == 1
        self.strategy = choose(devices[0].platform, convolutions) if strategy == "auto" else strategy
        if mesh is None and members == 1 and alone:
            mesh = read_mesh("data:1", 1, devices)
        self.solo = mesh is not None
        self.members, self.slots = members, members
        self.layout = Layout(mesh)
        if mesh is None:
            devices = devices[: min(len(devices), members)] if alone else devices
            self.slots = -(-members // len(devices)) * len(devices)  # members, and copies that fill up
            mesh = Mesh(np.array(devices), ("member",), axis_types=(AxisType.Auto,))
        self.mesh = mesh
        self._whole = NamedSharding(mesh, P())
        cut = lambda tree: jax.tree.map(lambda x: x[:members], tree)  # noqa: E731
        self._cut = jax.jit(cut, out_shardings=self._whole)

    def put(self, tree: Tree) -> Tree:
        """One member's host arrays, to where its state is made."""
        return self.layout.put_owned(tree) if self.solo else tree

    def abstract(self, tree: Tree) -> Tree:
        """What to restore a saved state of the shapes of `tree` into."""
        if self.solo:
            return self.layout.abstract(tree)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    def abstract_whole(self, tree: Tree) -> Tree:
        """The shapes and places of all members' states together."""
        if self.solo:
            return self.layout.abstract(tree)
        place = NamedSharding(self.mesh, P("member"))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.slots, *x.shape), x.dtype, sharding=place), tree
        )

    def join(self, members: list[Tree]) -> Tree:
        """The members' states as one placed tree, filled up with copies of the last one."""
        if self.solo:
            return members[0]
        rows = np.minimum(np.arange(self.slots), self.members - 1)
        stacked = jax.tree.map(lambda x: x[rows], stack(members))
        return put(stacked, lambda x: NamedSharding(self.mesh, P("member")))

    def place(self, members: list[Tree]) -> Tree:
        """The members' networks, from the host, to be measured."""
        return self.layout.put_whole(members[0]) if self.solo else self.join(members)

    def share(self, tree: Tree) -> Tree:
        """Data that every member sees, on every device."""
        return put(tree, lambda x: self._whole)

    def abstract_shared(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole), tree)

    def share_batches(self, tree: Tree) -> Tree:
        """(batches, rows, ...) that every member sees; one member's devices have a share of the rows."""
        return self.layout.put_rows(tree, axis=1) if self.solo else self.share(tree)

    def gather(self, tree: Tree) -> list[Tree]:
        """Each member's part of a tree of results, on the host."""
        host = jax.device_get(tree)
        if self.solo:
            return [host]
        return [jax.tree.map(lambda x: x[i], host) for i in range(self.members)]  # noqa: B023

    def trim(self, tree: Tree) -> Tree:
        """A placed tree without its filling, to be saved."""
        if self.slots == self.members:
            return tree
        return self._cut(tree)

    def compile(self, fn: Callable[..., Any], donate: bool = False) -> Any:
        """jit of `fn(member, *shared)` over all members of a placed tree.

        With `donate`, `fn` gives (member, results) and the member's state stays where it is. Results can
        be read by every process.
        """
        run = fn if self.solo else self._spread(fn)

        def placed(members: Tree, *shared: Any) -> Any:
            if not donate:
                return self._readable(run(members, *shared))
            members, results = run(members, *shared)
            return self.layout.owned(members), self._readable(results)

        return jax.jit(placed, donate_argnums=(0,) if donate else ())

    def _readable(self, results: Tree) -> Tree:
        if self.solo:
            return self.layout.whole(results)
        if jax.process_count() == 1:
            return results
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._whole), results)

    def _spread(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def shard(members: Tree, *shared: Any) -> Any:
            if self.strategy == "map":
                return jax.lax.map(lambda member: fn(member, *shared), members)
            return jax.vmap(fn, in_axes=(0, *(None for _ in shared)))(members, *shared)

        def run(members: Tree, *shared: Any) -> Any:
            return jax.shard_map(
                shard,
                mesh=self.mesh,
                in_specs=(P("member"), *(P() for _ in shared)),
                out_specs=P("member"),
                check_vma=False,  # nothing crosses members: there is no sum to check
            )(members, *shared)

        return run
