"""The product of rows in blocks, each by the kernel of the expert that owns the block.

For a TPU it is a kernel of our own, `grouped_kernels`, forwards and backwards. For anything else
the blocks are multiplied one after the other. Which of the two is settled when a program is made
for its devices, as that may be on a machine of another kind.

Shapes: N blocks of B rows, E experts, I channels in, O out.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from moemoe_jax.nn import grouped_kernels
from moemoe_jax.nn.blocks import Blocks
from moemoe_jax.nn.grouped_kernels import dot


@jax.custom_vjp
def grouped_dot(rows: jax.Array, kernel: jax.Array, blocks: Blocks) -> jax.Array:
    """[N, B, I] by [E, I, O] -> [N, B, O], summed in float32.

    Rows of a block that `blocks` knows to be empty must be zeros; they are zeros in the result. No
    forward-mode derivative.
    """
    return _multiply(rows, kernel, blocks, transposed=False)


def _forward(rows, kernel, blocks):
    return _multiply(rows, kernel, blocks, transposed=False), (rows, kernel, blocks)


def _backward(saved, gradient):
    rows, kernel, blocks = saved
    by_rows = _multiply(gradient, kernel, blocks, transposed=True)
    collect = functools.partial(grouped_kernels.collect, experts=kernel.shape[0])
    each = functools.partial(_collect_each, experts=kernel.shape[0])
    return by_rows, _for_platform(collect, each, rows, gradient, *blocks), None


grouped_dot.defvjp(_forward, _backward)


def _multiply(rows, kernel, blocks, transposed):
    return _for_platform(
        functools.partial(grouped_kernels.multiply, transposed=transposed),
        functools.partial(_multiply_each, transposed=transposed),
        rows,
        kernel,
        *blocks,
    )


def _for_platform(tpu: Callable, other: Callable, *arrays: jax.Array) -> jax.Array:
    # Never differentiated, as all callers are parts of a custom gradient: else the residuals of
    # both would be kept.
    return jax.lax.platform_dependent(*arrays, tpu=tpu, default=other)


def _multiply_each(rows, kernel, owner, source, transposed):
    """`grouped_kernels.multiply`, block after block."""
    del source

    def one(block):
        rows, owner = block
        return dot(rows, kernel[owner], 1, int(transposed)).astype(rows.dtype)

    return jax.lax.map(one, (rows, owner))


def _collect_each(rows, gradient, owner, source, experts):
    """`grouped_kernels.collect`, block after block."""
    del source

    def add(total, block):
        rows, gradient, owner = block
        return total.at[owner].add(dot(rows, gradient, 0, 0)), None

    total = jnp.zeros((experts, rows.shape[2], gradient.shape[2]), jnp.float32)
    return jax.lax.scan(add, total, (rows, gradient, owner))[0].astype(rows.dtype)
