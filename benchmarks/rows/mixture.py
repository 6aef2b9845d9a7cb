"""A mixture layer by itself, forward and backward, in seconds.

Shapes: T tokens, D width, F hidden width, E experts.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

from benchmarks.measure import Context, Cost, Samples, in_turn, timed
from benchmarks.sizes import BATCHES, get_config
from moemoe_jax.nn.feed_forward import FeedForward
from moemoe_jax.nn.moe import MoEConfig, MoEFeedForward

_TOP_K = 2


def against_dense(context: Context) -> Samples:
    """Top 2 of 8 experts of F, and a dense block of 2 F: as many operations a token."""
    costs = in_turn(_mixture(context.size, 8), _dense(context.size), context.repetitions)
    return Samples("s", *costs)


def against_fewer(context: Context) -> Samples:
    """64 experts and 8, of the same size and with the same tokens."""
    costs = in_turn(_mixture(context.size, 64), _mixture(context.size, 8), context.repetitions)
    return Samples("s", *costs)


def _mixture(size: str, experts: int) -> Cost:
    text = get_config(size).model.text
    layer = MoEFeedForward(
        MoEConfig(num_experts=experts, top_k=_TOP_K),
        text.d_model,
        text.d_ff,
        text.activation,
        rngs=nnx.Rngs(0),
    )
    return _cost(layer, size, lambda layer, x: layer(x, jnp.ones(x.shape[:-1], bool))[0])


def _dense(size: str) -> Cost:
    text = get_config(size).model.text
    layer = FeedForward(text.d_model, _TOP_K * text.d_ff, text.activation, rngs=nnx.Rngs(0))
    return _cost(layer, size, lambda layer, x: layer(x))


def _cost(layer: nnx.Module, size: str, run: Callable) -> Cost:
    """The layer's output and its gradient by the tokens, float32 [1, T, D], and all parameters."""
    tokens, width = BATCHES[size].layer_tokens, get_config(size).model.text.d_model
    x = jax.random.normal(jax.random.key(1), (1, tokens, width))
    graph, params = nnx.split(layer)

    @jax.jit
    def gradient(params, x, along):
        output, pull = jax.vjp(lambda params, x: run(nnx.merge(graph, params), x), params, x)
        return output, pull(along)

    return timed(lambda: jax.block_until_ready(gradient(params, x, x)))
