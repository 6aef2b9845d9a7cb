"""A stack of blocks, unrolled or scanned: the same numbers, with compile time to choose.

Scanning runs `jax.lax.scan` over the repeats of the shortest repeating pattern of layer kinds
(a mixture in every other layer: dense, mixture, dense, mixture...). The parameters of a pattern
position are then stored stacked, [repeats, ...], with the logical axis "layers" in front.

What a layer needs or returns beside the running value (caches, memories, statistics) is `tuple`
of pytrees, one per stored block: per layer if unrolled; per pattern position, with a leading
[repeats] dimension, if scanned. `Stack.batch_axis` says where the batch dimension is in them.
"""

from collections.abc import Callable, Hashable, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMATS = ("none", *REMAT_POLICIES)

Call = Callable[[nnx.Module, Any, Any, Any], tuple[Any, Any]]


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def stack_layers(states: Sequence[nnx.State]) -> nnx.State:
    """Stacks the states of equal layers along a new leading axis, named "layers".

    Raises:
      ValueError: when the layers differ in structure.
    """

    def stacked(first: nnx.Variable, *others: nnx.Variable) -> nnx.Variable:
        value = jnp.stack([v[...] for v in (first, *others)])
        return first.replace(value, logical_axes=("layers", *first.logical_axes))

    return jax.tree.map(stacked, *states, is_leaf=_is_variable)


def unstack_layers(state: nnx.State) -> list[nnx.State]:
    """The inverse of `stack_layers`: one state per layer."""
    repeats = jax.tree.leaves(state)[0].shape[0]

    def layer(index: int) -> nnx.State:
        return jax.tree.map(
            lambda v: v.replace(v[...][index], logical_axes=v.logical_axes[1:]),
            state,
            is_leaf=_is_variable,
        )

    return [layer(index) for index in range(repeats)]


def shortest_pattern(kinds: Sequence[Hashable]) -> int:
    """Length of the shortest prefix that, repeated, gives all of `kinds`."""
    count = len(kinds)
    lengths = (n for n in range(1, count + 1) if count % n == 0)
    return next(n for n in lengths if list(kinds[:n]) * (count // n) == list(kinds))


class Stack(nnx.Module):
    """Blocks, one after the other.

    Args:
      make: builds the block of a layer index.
      kinds: one value a layer; layers of equal kind have equal structure.
      scan: store the parameters stacked and scan over them.
      remat: what the backward pass recomputes: "none", "dots" (all but the results of matrix
        products) or "full" (everything inside a block).
    """

    def __init__(
        self,
        make: Callable[[int], nnx.Module],
        kinds: Sequence[Hashable],
        *,
        scan: bool = False,
        remat: str = "none",
    ):
        if remat not in REMATS:
            raise ValueError(f"remat {remat!r} is none of {', '.join(REMATS)}")
        self.scan = scan
        self.remat = remat
        self.layers = len(kinds)
        blocks = [make(index) for index in range(self.layers)]
        if scan:
            period = shortest_pattern(kinds)
            groups = [blocks[position::period] for position in range(period)]
            blocks = [
                nnx.merge(nnx.graphdef(group[0]), stack_layers([nnx.state(b) for b in group]))
                for group in groups
            ]
        self.blocks = nnx.List(blocks)

    @property
    def batch_axis(self) -> int:
        """The axis of the batch dimension in caches, memories and other per-layer values."""
        return 1 if self.scan else 0

    @property
    def repeats(self) -> int:
        """How many layers each stored block stands for."""
        return self.layers // len(self.blocks)

    def __call__(self, call: Call, carry: Any, inputs: Any = None) -> tuple[Any, tuple]:
        """Runs `carry, output = call(block, index, carry, input)` through all layers.

        Args:
          call: one layer's step; `index` is the layer's, an int or int32 scalar array.
          carry: a pytree whose shapes and dtypes a layer keeps.
          inputs: per-layer values (see the top of this file), or None.

        Returns:
          The last carry, and the per-layer outputs.
        """
        inputs = (None,) * len(self.blocks) if inputs is None else inputs
        if not self.scan:
            outputs = []
            for index, (block, value) in enumerate(zip(self.blocks, inputs, strict=True)):
                carry, output = self._step(call, *nnx.split(block))(index, carry, value)
                outputs.append(output)
            return carry, tuple(outputs)

        graphs, states = zip(*(nnx.split(block) for block in self.blocks), strict=True)

        def body(carry, repeat_inputs):
            repeat, states, values = repeat_inputs
            outputs = []
            for position, (graph, state, value) in enumerate(
                zip(graphs, states, values, strict=True)
            ):
                index = repeat * len(graphs) + position
                carry, output = self._step(call, graph, state)(index, carry, value)
                outputs.append(output)
            return carry, tuple(outputs)

        return jax.lax.scan(body, carry, (jnp.arange(self.repeats), states, tuple(inputs)))

    def _step(self, call: Call, graph: nnx.GraphDef, state: nnx.State) -> Callable:
        """One block's step as a function of (index, carry, input), recomputed as `remat` says."""

        def step(state, index, carry, value):
            return call(nnx.merge(graph, state), index, carry, value)

        if self.remat != "none":
            # Inside a scan, the loop itself keeps the recomputation from being merged away.
            policy = REMAT_POLICIES[self.remat]
            step = jax.checkpoint(step, policy=policy, prevent_cse=not self.scan)
        return functools.partial(step, state)

    def for_each_layer(self, value: Any) -> tuple:
        """The same pytree for every layer, laid out as `__call__` takes it; buffers not shared."""
        if self.scan:
            return tuple(
                jax.tree.map(lambda a: jnp.repeat(a[None], self.repeats, axis=0), value)
                for _ in self.blocks
            )
        return tuple(jax.tree.map(jnp.copy, value) for _ in self.blocks)

    def by_layer(self, outputs: Sequence[Any]) -> list[Any]:
        """Per-layer outputs of `__call__` as a list with one entry a layer, in order."""
        if not self.scan:
            return list(outputs)
        period = len(self.blocks)
        return [
            jax.tree.map(lambda a: a[index // period], outputs[index % period])  # noqa: B023
            for index in range(self.layers)
        ]

    def layer_states(self) -> list[nnx.State]:
        """The parameters of each layer, in order, however they are stored."""
        if not self.scan:
            return [nnx.state(block) for block in self.blocks]
        groups = [unstack_layers(nnx.state(block)) for block in self.blocks]
        return [groups[i % len(groups)][i // len(groups)] for i in range(self.layers)]

    def set_layer_states(self, states: Sequence[nnx.State]) -> None:
        """Sets the parameters from one state a layer, in order.

        Raises:
          ValueError: when the number of states is not the number of layers.
        """
        if len(states) != self.layers:
            raise ValueError(f"{len(states)} layer states for a stack of {self.layers} layers")
        period = len(self.blocks)
        for position, block in enumerate(self.blocks):
            group = states[position::period]
            nnx.update(block, stack_layers(group) if self.scan else group[0])
