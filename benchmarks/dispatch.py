r"""What each back end of `nn/dispatch.py` makes of a mixture layer on one chip of a TPU; a table.

    python -m benchmarks.dispatch
    python -m benchmarks.dispatch --topology=v6e:2x2 --layers=4864x64 --dispatch=grouped
    python -m benchmarks.dispatch --chips=2 --dispatch=index --dispatch=grouped
    python -m benchmarks.dispatch --here --layers=1520x8,16384x8

The layer (top 2, 768 channels, hidden 2,048, gated, bfloat16) is compiled with its gradient by
tokens and parameters, for a chip that is not there, or several among which the experts are dealt
out; nothing is measured. That needs libtpu. With --here it is run on this machine's first device
instead, and timed beside the dense block of as many operations. docs/roofline.md says more.
"""

from collections.abc import Sequence
import dataclasses
import os
import re
import statistics
import time
from typing import TYPE_CHECKING

from absl import flags

from launch import common
from moemoe_jax.aot import topologies
from moemoe_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from moemoe_jax.nn.moe import MoEConfig

_TOP_K, _WIDTH, _HIDDEN = 2, 768, 2048
_RUNS = 20
_PRODUCTS = 3 * 3  # forward, by rows and by kernels; wi_0, wi_1 and wo


def define_flags() -> None:
    """Those of this command; of the command alone, as others have some of the same names."""
    flags.DEFINE_string("topology", "v5e:2x2", "chip:shape, whose first chips are taken.")
    flags.DEFINE_integer("chips", 1, "Chips that the experts are dealt out among.", 1)
    flags.DEFINE_list(
        "layers", ["128x8", "4864x8", "4864x64"], "Tokens of a chip and experts of each layer."
    )
    flags.DEFINE_enum(
        "stored", "float32", ["float32", "bfloat16"], "What kernels, and their gradients, are."
    )
    flags.DEFINE_multi_string(
        "dispatch", [], "A back end, such as grouped; repeat it for several. By default all."
    )
    flags.DEFINE_bool("here", False, "Run and time it on this machine's first device.")
    flags.DEFINE_float("effort", -1.0, "How hard the compiler tries.", -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Found:
    """One layer as it was compiled, by one back end; all of one chip.

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
      UserError: for a name of another form, or too few experts.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if not found:
        raise UserError(f"--layers={name}: write tokens x experts, such as 4864x8")
    if int(found[2]) < _TOP_K:
        raise UserError(f"--layers={name}: a token goes to {_TOP_K} experts, so have no fewer")
    return int(found[1]), int(found[2])


def backends_of(names: Sequence[str]) -> list[str]:
    """The back ends of these names; all that there are, for none.

    Raises:
      UserError: for a name that is no back end's.
    """
    from moemoe_jax.nn.dispatch import DISPATCHERS

    for name in names:
        if name not in DISPATCHERS:
            raise UserError(f"--dispatch={name}: the back ends are {', '.join(DISPATCHERS)}")
    return list(names or DISPATCHERS)


def worst_rows(backend: str, tokens: int, experts: int, chips: int = 1) -> int:
    """Rows that a chip's experts compute together where all tokens want the same experts.

    Of "grouped", all that there is room for.
    """
    from moemoe_jax.nn.blocks import block_sizes
    from moemoe_jax.nn.spread import slots_of_devices

    if backend in ("ragged", "in_turn"):
        return tokens * _TOP_K
    if backend != "grouped":
        return tokens * experts
    sizes = (tokens, _TOP_K, experts, tokens)
    if chips > 1:
        come = chips * slots_of_devices(tokens, _TOP_K, experts, chips, tokens)[-1]
        sizes = (come, 1, experts // chips, come)
    rows, blocks = block_sizes(*sizes)
    return rows * blocks


def compiled(
    backend: str,
    tokens: int,
    experts: int,
    devices: "Sequence[jax.Device]",
    stored: str,
    effort: float,
) -> Found:
    """Compiles a layer with its gradient for devices, and reads the program of one."""
    from moemoe_jax.aot import work
    from moemoe_jax.aot.flops_text import mixture_rows
    from moemoe_jax.aot.hlo import Module
    from moemoe_jax.nn.moe import MoEConfig

    config = MoEConfig(num_experts=experts, top_k=_TOP_K, dispatch=backend)
    options = {"exec_time_optimization_effort": effort}
    function, arguments = layer(config, tokens, devices, stored)
    program = function.lower(*arguments).compile(compiler_options=options)
    module = Module(program.as_text())
    a_row = 2.0 * _PRODUCTS * _WIDTH * _HIDDEN
    router = 2.0 * 3 * tokens * _WIDTH * experts
    counted = (work.total_flops(module) - router) / a_row
    chips = len(devices)
    usual = mixture_rows(config, tokens * chips, chips, chips)[0] / chips
    needed = tokens * _TOP_K
    worst = counted / usual * worst_rows(backend, tokens, experts, chips)
    return Found(
        tokens,
        experts,
        backend,
        counted / needed,
        worst / needed,
        work.hbm_bytes(module),
        program.memory_analysis().temp_size_in_bytes,
    )


def layer(
    config: "MoEConfig | None",
    tokens: int,
    devices: "Sequence[jax.Device]",
    stored: str = "float32",
) -> "tuple[jax.stages.Wrapped, tuple]":
    """The layer's output and its gradient by each device's tokens and by parameters.

    Args:
      config: how to route; None is the dense block of as many operations a token.
      tokens: of a device.
      devices: among which experts are dealt out.
      stored: dtype of the kernels.

    Returns:
      A function of (parameters, tokens, gradient by the output), and their shapes and places.
    """
    from flax import nnx
    import jax
    import jax.numpy as jnp

    from moemoe_jax.nn.feed_forward import FeedForward
    from moemoe_jax.nn.moe import MoEFeedForward
    from moemoe_jax.parallel.axes import using
    from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
    from moemoe_jax.parallel.sharding import batch_sharding, param_shardings

    def make():
        kinds = {"dtype": "bfloat16", "rngs": nnx.Rngs(0)}
        if config is None:
            return FeedForward(_WIDTH, _TOP_K * _HIDDEN, "gated-gelu", **kinds)
        return MoEFeedForward(config, _WIDTH, _HIDDEN, "gated-gelu", **kinds)

    graph, params = nnx.split(nnx.eval_shape(make))
    mesh = make_mesh(MeshConfig(data=1, expert=len(devices)), devices)

    def placed(leaf, place):
        dtype = stored if leaf.ndim == 3 else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place)

    def gradient(params, x, along):
        def run(params, x):
            block = nnx.merge(graph, params)
            return block(x) if config is None else block(x, jnp.ones(x.shape[:-1], bool))[0]

        with using(mesh):
            output, pull = jax.vjp(run, params, x)
            return output, pull(along)

    shape, rows = (len(devices), tokens, _WIDTH), batch_sharding(mesh)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows)
    places = param_shardings(params, mesh)
    params = jax.tree.map(placed, params, places)
    return jax.jit(gradient, out_shardings=(rows, (places, rows))), (params, x, x)


def main(argv: Sequence[str]) -> int:
    """Compiles all and prints the table."""
    del argv
    args = flags.FLAGS
    layers = [layer_of(name) for name in args.layers]
    if not args.here:
        topologies.require_libtpu()
        os.environ.update(topologies.ENVIRONMENT)
    backends = backends_of(args.dispatch)  # imports JAX, which reads the environment
    if args.here:
        time_here(layers, backends, args.stored)
        return 0
    devices = topologies.devices(args.topology)[: args.chips]
    if len(devices) < args.chips:
        raise UserError(f"--chips={args.chips}: {args.topology} has {len(devices)}")
    for line in (HEADER, ("---",) * len(HEADER)):
        _print(line)
    for tokens, experts in layers:
        for backend in backends:
            _print(compiled(backend, tokens, experts, devices, args.stored, args.effort).cells())
    return 0


def time_here(layers: Sequence[tuple[int, int]], backends: Sequence[str], stored: str) -> None:
    """Runs layers of (tokens, experts) on this machine's first device and prints a table."""
    import jax

    from moemoe_jax.nn.moe import MoEConfig

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, medians of {_RUNS}", flush=True)
    for line in (("tokens", "experts", "dispatch", "ms"), ("---",) * 4):
        _print(line)
    for tokens, experts in layers:
        kinds = {name: MoEConfig(experts, _TOP_K, dispatch=name) for name in backends}
        for name, config in {"dense block": None, **kinds}.items():
            took = milliseconds(config, tokens, device, stored)
            count = "" if config is None else str(experts)
            _print((f"{tokens:,}", count, name, f"{took:.3g}"))


def milliseconds(
    config: "MoEConfig | None", tokens: int, device: "jax.Device", stored: str
) -> float:
    """The layer with its gradient on random tokens; None is the dense block of top-k times F."""
    import jax

    run, arguments = layer(config, tokens, [device], stored)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(arguments))))

    def draw(leaf):
        values = jax.random.normal(next(keys), leaf.shape, leaf.dtype) * leaf.shape[-2] ** -0.5
        return jax.device_put(values, leaf.sharding)

    arguments, costs = jax.tree.map(draw, arguments), []
    for _ in range(_RUNS + 1):  # the first compiles
        begun = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        costs.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(costs[1:])


def _print(line: Sequence[str]) -> None:
    print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    define_flags()
    common.run(main)
