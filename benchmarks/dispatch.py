r"""What each back end of `nn/dispatch.py` makes of a mixture layer on one chip of a TPU; a table.

    python -m benchmarks.dispatch
    python -m benchmarks.dispatch --topology=v6e:2x2 --layers=4864x64 --dispatch=index,grouped

The layer (top 2, 768 channels, hidden 2,048, gated, bfloat16) is compiled with its gradient by
tokens and parameters, for a chip that is not there; nothing is measured. That needs libtpu.
docs/roofline.md says more.
"""

from collections.abc import Sequence
import dataclasses
import os
import re
from typing import TYPE_CHECKING

from absl import flags

from launch import common
from moemoe_jax.aot import topologies
from moemoe_jax.errors import UserError

if TYPE_CHECKING:
    import jax

_TOP_K, _WIDTH, _HIDDEN = 2, 768, 2048
_PRODUCTS = 3 * 3  # forward, by rows and by kernels; wi_0, wi_1 and wo

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "chip:shape; one of its chips is taken.")
_LAYERS = flags.DEFINE_list(
    "layers", ["128x8", "4864x8", "4864x64"], "Tokens and experts of each layer."
)
_BACK_ENDS = flags.DEFINE_list("dispatch", ["index", "ragged", "dense", "grouped"], "Back ends.")
_EFFORT = flags.DEFINE_float("effort", -1.0, "How hard the compiler tries.", -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Found:
    """One layer as it was compiled, by one back end.

    Attributes:
      tokens: T.
      experts: E.
      backend: its name.
      usual: operations of the usual routing, over those that the chosen experts need.
      most: the same of the worst routing there is.
      traffic: bytes to and from the HBM, in the usual one.
      temporaries: bytes.
    """

    tokens: int
    experts: int
    backend: str
    usual: float
    most: float
    traffic: float
    temporaries: float

    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        sizes = (f"{size / 2**20:.0f}" for size in (self.traffic, self.temporaries))
        shape = (f"{self.tokens:,}", str(self.experts), self.backend)
        return *shape, f"{self.usual:.2f}", f"{self.most:.2f}", *sizes


HEADER = ("tokens", "experts", "dispatch", "operations over those needed", "worst routing")
HEADER += ("memory traffic, MiB", "temporaries, MiB")


def layer_of(name: str) -> tuple[int, int]:
    """Tokens and experts of a layer such as 4864x8.

    Raises:
      UserError: for a name of another form.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if not found or int(found[2]) < _TOP_K:
        raise UserError(f"--layers={name}: write tokens x experts, such as 4864x8")
    return int(found[1]), int(found[2])


def worst_rows(backend: str, tokens: int, experts: int) -> int:
    """Rows that the experts compute together with the routing that needs the most of them."""
    from moemoe_jax.nn.blocks import block_sizes

    if backend == "ragged":
        return tokens * _TOP_K
    if backend == "grouped":
        rows, blocks = block_sizes(tokens, _TOP_K, experts, tokens)
        return rows * blocks
    return tokens * experts


def compiled(backend: str, tokens: int, experts: int, device: "jax.Device") -> Found:
    """Compiles a layer with its gradient for a device, and reads the program."""
    from moemoe_jax.aot import work
    from moemoe_jax.aot.flops_text import mixture_rows
    from moemoe_jax.aot.hlo import Module
    from moemoe_jax.nn.moe import MoEConfig

    config = MoEConfig(num_experts=experts, top_k=_TOP_K, dispatch=backend)
    options = {"exec_time_optimization_effort": _EFFORT.value}
    program = traced(config, tokens, device).lower().compile(compiler_options=options)
    module = Module(program.as_text())
    a_row = 2.0 * _PRODUCTS * _WIDTH * _HIDDEN
    router = 2.0 * 3 * tokens * _WIDTH * experts
    counted = (work.total_flops(module) - router) / a_row
    usual, _ = mixture_rows(config, tokens, 1, 1)
    needed = tokens * _TOP_K
    worst = counted / usual * worst_rows(backend, tokens, experts)
    return Found(
        tokens,
        experts,
        backend,
        counted / needed,
        worst / needed,
        work.hbm_bytes(module),
        program.memory_analysis().temp_size_in_bytes,
    )


def traced(config, tokens: int, device: "jax.Device") -> "jax.stages.Traced":
    """The layer's output and its gradient by tokens and parameters, for a device."""
    from flax import nnx
    import jax
    import jax.numpy as jnp

    from moemoe_jax.nn.moe import MoEFeedForward

    def make():
        kinds = {"dtype": "bfloat16", "rngs": nnx.Rngs(0)}
        return MoEFeedForward(config, _WIDTH, _HIDDEN, "gated-gelu", **kinds)

    graph, params = nnx.split(nnx.eval_shape(make))
    place = jax.sharding.SingleDeviceSharding(device)

    def placed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def gradient(params, x, along):
        def run(params, x):
            return nnx.merge(graph, params)(x, jnp.ones(x.shape[:-1], bool))[0]

        output, pull = jax.vjp(run, params, x)
        return output, pull(along)

    x = placed(jax.ShapeDtypeStruct((1, tokens, _WIDTH), jnp.bfloat16))
    return jax.jit(gradient).trace(jax.tree.map(placed, params), x, x)


def main(argv: Sequence[str]) -> int:
    """Compiles all and prints the table."""
    del argv
    layers = [layer_of(name) for name in _LAYERS.value]
    topologies.require_libtpu()
    os.environ.update(topologies.ENVIRONMENT)
    device = topologies.devices(_TOPOLOGY.value)[0]
    lines = [HEADER, ("---",) * len(HEADER)]
    for tokens, experts in layers:
        lines += [
            compiled(backend, tokens, experts, device).cells() for backend in _BACK_ENDS.value
        ]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


if __name__ == "__main__":
    common.run(main)
