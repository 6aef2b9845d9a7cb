"""The products of rows in blocks as kernels for TPUs.

A grid goes over the blocks in their order. Who owns them is known before it starts and says which
tiles are fetched: a tile of an expert's kernel stays on the chip for all of its blocks, and a block
without rows fetches nothing and multiplies nothing.

Tiles are as large as the chip's memory allows, chosen for the least traffic with the HBM. What a
kernel costs is told to the compiler, and can be read in the compiled program (`aot/work.py`).

Shapes: N blocks of B rows, E experts, I channels in, O out.
"""

from collections.abc import Callable
import itertools

import jax
import jax.numpy as jnp

from moemoe_jax.nn.blocks import usual_blocks

# Bytes of on-chip memory for the tiles. A v5e gives a kernel 16 MiB, some for the compiler's own.
ROOM = 11 * 2**20
_LANES = 128  # tiles are multiples of this, or whole


def dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The product of two matrices over an axis of each, in float32."""
    # A TPU's kernel refuses to multiply bfloat16 with more precision than it has.
    precision = None if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dims = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(
        left, right, dims, precision=precision, preferred_element_type=jnp.float32
    )


def multiply(
    rows: jax.Array, kernel: jax.Array, owner: jax.Array, source: jax.Array, *, transposed: bool
) -> jax.Array:
    """The product of each block of rows with its owner's kernel.

    Args:
      rows: [N, B, I].
      kernel: [E, I, O], or [E, O, I] if `transposed`.
      owner: int32 [N], as in `Blocks`.
      source: likewise.
      transposed: whether the kernel is.

    Returns:
      [N, B, O] in the dtype of `rows`, summed in float32; zeros in blocks without rows.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (blocks, size, width), experts = rows.shape, kernel.shape[0]
    out_width, item = kernel.shape[1 if transposed else 2], rows.dtype.itemsize
    usual = usual_blocks(blocks, experts)

    def held(deep: int, wide: int) -> int:
        tiles = size * deep + deep * wide + size * wide
        return 2 * item * tiles + 4 * size * wide * (1 if deep == width else 2)

    def traffic(deep: int, wide: int) -> int:
        fetched = experts if deep == width else usual  # kernels: once an expert, or once a block
        moved = usual * size * width * (out_width // wide) + fetched * width * out_width
        return item * (moved + blocks * size * out_width)

    deep, wide = _tiles(width, out_width, held, traffic)
    steps = width // deep

    def body(owner, source, rows, kernel, out, *sums):
        del owner
        block, step = pl.program_id(1), pl.program_id(2)

        @pl.when(source[block] == block)
        def _():
            product = dot(rows[...], kernel[...], 1, int(transposed))
            if sums:
                product += jnp.where(step == 0, 0.0, sums[0][...])
                sums[0][...] = product
            out[...] = product.astype(out.dtype)

        @pl.when(source[block] != block)
        def _():
            out[...] = jnp.zeros_like(out)

    def depth(block, step, source):
        """Where a block has no rows, the part that is there already."""
        return jnp.where(source[block] == block, step, steps - 1)

    def kernel_at(j, block, step, owner, source):
        whose, deep = owner[source[block]], depth(block, step, source)
        return (whose, j, deep) if transposed else (whose, deep, j)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((blocks, size, out_width), rows.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(out_width // wide, blocks, steps),
            in_specs=[
                pl.BlockSpec(
                    (None, size, deep),
                    lambda j, block, step, owner, source: (
                        source[block],
                        0,
                        depth(block, step, source),
                    ),
                ),
                pl.BlockSpec((None, wide, deep) if transposed else (None, deep, wide), kernel_at),
            ],
            out_specs=pl.BlockSpec(
                (None, size, wide), lambda j, block, step, owner, source: (block, 0, j)
            ),
            scratch_shapes=[pltpu.VMEM((size, wide), jnp.float32)] * (steps > 1),
        ),
        # Of a chip with two cores, each takes a part of the blocks.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * usual * size * width * out_width,
            transcendentals=0,
            bytes_accessed=traffic(deep, wide),
        ),
        name="grouped_transposed" if transposed else "grouped",
    )(owner, source, rows, kernel)


def collect(
    rows: jax.Array, gradient: jax.Array, owner: jax.Array, source: jax.Array, *, experts: int
) -> jax.Array:
    """The gradient of the kernels: each expert's sum of rowsᵀ gradient over its blocks.

    Args:
      rows: [N, B, I].
      gradient: [N, B, O].
      owner: int32 [N], as in `Blocks`.
      source: likewise.
      experts: E.

    Returns:
      [E, I, O] in the dtype of `rows`, summed in float32; zeros for an expert without rows.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (blocks, size, width), out_width = rows.shape, gradient.shape[2]
    item, usual = rows.dtype.itemsize, usual_blocks(blocks, experts)

    def held(high: int, wide: int) -> int:
        return 2 * item * (size * (high + wide) + high * wide) + 8 * high * wide

    def traffic(high: int, wide: int) -> int:
        fetched = width * (out_width // wide) + out_width * (width // high)
        return item * (usual * size * fetched + experts * width * out_width)

    high, wide = _tiles(width, out_width, held, traffic)

    def body(owner, source, rows, gradient, out, total):
        block, last = pl.program_id(2), pl.num_programs(2) - 1
        before, after = owner[jnp.maximum(block - 1, 0)], owner[jnp.minimum(block + 1, last)]

        @pl.when((block == 0) | (before != owner[block]))
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(source[block] == block)
        def _():
            total[...] += dot(rows[...], gradient[...], 0, 0)

        @pl.when((block == last) | (after != owner[block]))
        def _():
            out[...] = total[...].astype(out.dtype)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((experts, width, out_width), rows.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(width // high, out_width // wide, blocks),
            in_specs=[
                pl.BlockSpec(
                    (None, size, high), lambda i, j, block, owner, source: (source[block], 0, i)
                ),
                pl.BlockSpec(
                    (None, size, wide), lambda i, j, block, owner, source: (source[block], 0, j)
                ),
            ],
            out_specs=pl.BlockSpec(
                (None, high, wide), lambda i, j, block, owner, source: (owner[block], i, j)
            ),
            scratch_shapes=[pltpu.VMEM((high, wide), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * usual * size * width * out_width,
            transcendentals=0,
            bytes_accessed=traffic(high, wide),
        ),
        name="grouped_collect",
    )(owner, source, rows, gradient)


def _tiles(
    first: int, second: int, held: Callable[[int, int], int], traffic: Callable[[int, int], int]
) -> tuple[int, int]:
    """The tile of two dimensions with the least traffic of those that the chip holds.

    Where it holds none, the smallest: then the compiler says that it does not fit.
    """
    tiles = list(itertools.product(_parts(first), _parts(second)))
    fitting = [tile for tile in tiles if held(*tile) <= ROOM]
    return min(fitting, key=lambda tile: (traffic(*tile), -held(*tile))) if fitting else min(tiles)


def _parts(size: int) -> list[int]:
    """What a dimension can be cut into."""
    return [part for part in range(_LANES, size, _LANES) if size % part == 0] + [size]
