"""SwinV2 (arXiv 2111.09883): an image becomes tokens, by attention within shifted windows.

What sets it apart from the first Swin, and makes it train at any size: attention scores are cosines
with a learned scale, positions enter through a small network on log-spaced offsets, so that weights
move between window sizes, and each sublayer's *output* is normalised before it is added.

Shapes: B batch, M and N height and width of a map in patches, C channels of a stage,
K' output tokens, D' output channels.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.nn import rng, windows
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import normal, param
from moemoe_jax.nn.window_attention import KERNEL_INIT, WindowAttention
from moemoe_jax.parallel.axes import constrain


@dataclasses.dataclass(frozen=True)
class SwinV2Config:
    """What a SwinV2 is made of; one entry per stage in the tuples. The defaults are the tiny model.

    A stage halves the sides of the map and doubles its channels. Where the map is no larger than
    the window, the window shrinks to the map and does not shift; other sizes are padded.

    Attributes:
      image_size: side of the square input, in pixels.
      patch_size: side of a patch, in pixels.
      channels: of the input.
      embed_dim: channels of the first stage, C.
      depths: blocks of each stage; every second one shifts its windows by half a window.
      heads: attention heads of each stage.
      window_size: side of a window, in patches.
      pretrained_window_sizes: the side that imported weights were trained with, 0 = `window_size`.
      mlp_ratio: hidden width of a block's MLP, in units of its channels.
      qkv_bias: whether queries and values have a bias; keys never do.
      absolute_positions: whether a learned vector of its place is added to every patch. SwinV2 as
        published has none, so a window does not know where in the image it is. Trained from
        scratch on images where things keep their places, a small model sees far sooner with it;
        where images are flipped and cropped at random, it did harm.
      dropout: on the embedded patches and on the MLPs' outputs.
      attention_dropout: on attention weights and on the attention's output.
      drop_path: chance that a sample skips a sublayer; grows from 0 at the first block to this.
      epsilon: of the layer norms.
      dtype: compute dtype; parameters are float32.
      remat: whether to recompute blocks in the backward pass in place of keeping activations.
    """

    image_size: int = 256
    patch_size: int = 4
    channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 8
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    absolute_positions: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1
    epsilon: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        lengths = len(self.depths), len(self.heads), len(self.pretrained_window_sizes)
        if len(set(lengths)) > 1 or not self.depths:
            raise ValueError(
                f"depths, heads and pretrained_window_sizes have {lengths} entries; "
                "give one per stage in each"
            )
        for name in ("patch_size", "channels", "embed_dim", "window_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if int(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}, which leaves an MLP no channel")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        smallest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size < smallest:
            raise ValueError(
                f"image_size {self.image_size} leaves no patch for the last of {len(self.depths)} "
                f"stages with patch_size {self.patch_size}; use at least {smallest}"
            )
        for stage, heads in enumerate(self.heads):
            if heads < 1 or self.depths[stage] < 1 or self.stage_width(stage) % heads:
                raise ValueError(
                    f"stage {stage} has {self.depths[stage]} blocks, {self.stage_width(stage)} "
                    f"channels and {heads} heads; it needs a block, and heads that divide channels"
                )
        if any(size < 0 or size == 1 for size in self.pretrained_window_sizes):
            raise ValueError(
                f"pretrained_window_sizes {self.pretrained_window_sizes}: each must be 0 (the "
                "same as window_size) or at least 2"
            )
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {self.dtype!r}: use float32, bfloat16 or float16")

    @property
    def width(self) -> int:
        """Channels of the output, D'."""
        return self.stage_width(len(self.depths) - 1)

    @property
    def tokens(self) -> int:
        """Number of output tokens, K'."""
        side = -(-self.image_size // (self.patch_size * 2 ** (len(self.depths) - 1)))
        return side * side

    def stage_width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    def stage_window(self, stage: int) -> tuple[int, int]:
        """Side of a stage's windows, and by how much every second block shifts them.

        Sizes are rounded down here, although maps are padded up: published models do so, and the
        difference shows where a map is one larger than this says.
        """
        side = self.image_size // self.patch_size // 2**stage
        return (self.window_size, self.window_size // 2) if side > self.window_size else (side, 0)


class LayerNorm(nnx.Module):
    """Layer norm with statistics in float32, and the result in the dtype of the input."""

    def __init__(self, features: int, epsilon: float, *, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = param(rngs, (features,), nnx.initializers.ones_init(), (None,))
        self.bias = param(rngs, (features,), nnx.initializers.zeros_init(), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension of float [..., C]."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        wide = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (wide * self.scale[...] + self.bias[...]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Φ(x), Φ by erf: `jax.nn.gelu` takes erfc, twice as slow, for a tail of 1e-7."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


class MLP(nnx.Module):
    """Two linear maps with exact GELU between them."""

    def __init__(self, config: SwinV2Config, width: int, *, rngs: nnx.Rngs):
        hidden = int(config.mlp_ratio * width)
        kind = {"init": KERNEL_INIT, "use_bias": True, "dtype": config.dtype, "rngs": rngs}
        self.in_proj = Linear(width, hidden, axes=("embed", "mlp"), **kind)
        self.out_proj = Linear(hidden, width, axes=("mlp", "embed"), **kind)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [..., C] to [..., C]."""
        return self.out_proj(gelu(self.in_proj(x)))


class Block(nnx.Module):
    """Attention and MLP, each normalised after and skipped by some samples in training."""

    def __init__(self, config: SwinV2Config, stage: int, index: int, *, rngs: nnx.Rngs):
        before = sum(config.depths[:stage]) + index
        self.drop_path = config.drop_path * before / max(sum(config.depths) - 1, 1)
        self.dropout = config.dropout
        width = config.stage_width(stage)
        window, shift = config.stage_window(stage)
        self.attention = WindowAttention(
            width,
            config.heads[stage],
            window=window,
            shift=shift if index % 2 else 0,
            pretrained_window=config.pretrained_window_sizes[stage],
            qkv_bias=config.qkv_bias,
            dropout=config.attention_dropout,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attention_norm = LayerNorm(width, config.epsilon, rngs=rngs)
        self.mlp = MLP(config, width, rngs=rngs)
        self.mlp_norm = LayerNorm(width, config.epsilon, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps [B, M, N, C] to [B, M, N, C]."""
        keys = rng.split(key, 4)
        x += self.skip(self.attention_norm(self.attention(x, keys[0])), keys[1])
        hidden = rng.dropout(self.mlp(x), self.dropout, keys[2])
        return x + self.skip(self.mlp_norm(hidden), keys[3])

    def skip(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Stochastic depth: drops whole samples of [B, ...]."""
        ones = jnp.ones((x.shape[0], *[1] * (x.ndim - 1)), x.dtype)
        return x if key is None else x * rng.dropout(ones, self.drop_path, key)


class PatchMerge(nnx.Module):
    """Halves a map: 2 x 2 patches become one, of twice the channels."""

    def __init__(self, width: int, config: SwinV2Config, *, rngs: nnx.Rngs):
        kind = {"init": KERNEL_INIT, "dtype": config.dtype, "rngs": rngs}
        self.reduction = Linear(4 * width, 2 * width, **kind)
        self.norm = LayerNorm(2 * width, config.epsilon, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, M, N, C] to [B, ⌈M/2⌉, ⌈N/2⌉, 2·C]."""
        return self.norm(self.reduction(windows.space_to_depth(windows.pad_to_multiple(x, 2))))


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its kernel's size, as one matrix product."""

    def __init__(self, config: SwinV2Config, *, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.dtype)
        shape = (config.patch_size, config.patch_size, config.channels, config.embed_dim)
        self.kernel = param(rngs, shape, KERNEL_INIT, (None,) * 4)
        self.bias = param(rngs, shape[-1:], nnx.initializers.zeros_init(), (None,))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps pixels [B, height, width, channels] to [B, M, N, C]; the border is padded."""
        side, width = self.kernel.shape[0], self.kernel.shape[-1]
        x = windows.pad_to_multiple(pixels.astype(self.dtype), side)
        rows, columns = x.shape[1] // side, x.shape[2] // side
        patches = windows.partition(x, side).reshape(x.shape[0], rows, columns, -1)
        kernel = self.kernel[...].reshape(-1, width)
        return patches @ kernel.astype(self.dtype) + self.bias[...].astype(self.dtype)


class Stage(nnx.Module):
    """Blocks on maps of one size, then (but for the last stage) the step to the next size."""

    def __init__(self, config: SwinV2Config, stage: int, *, rngs: nnx.Rngs):
        self.remat = config.remat
        blocks = [Block(config, stage, index, rngs=rngs) for index in range(config.depths[stage])]
        self.blocks = nnx.List(blocks)
        last = stage == len(config.depths) - 1
        self.merge = None if last else PatchMerge(config.stage_width(stage), config, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps [B, M, N, C] to [B, ⌈M/2⌉, ⌈N/2⌉, 2·C], or to its own shape in the last stage."""
        for block, block_key in zip(self.blocks, rng.split(key, len(self.blocks)), strict=True):
            x = (jax.checkpoint(block.__call__) if self.remat else block)(x, block_key)
        return x if self.merge is None else self.merge(x)


def _positions(config: SwinV2Config, rngs: nnx.Rngs) -> nnx.Param:
    """A vector for every patch, [M, N, C].

    They start as large as the patches they are added to: at the usual 0.02, places are hard to tell
    apart for hundreds of steps, and what the vectors are for is not learned sooner than without.
    """
    side = -(-config.image_size // config.patch_size)
    shape = (side, side, config.embed_dim)
    return param(rngs, shape, normal(1.0), (None,) * 3)


class SwinV2(nnx.Module):
    """The image encoder: normalised pixels in, tokens of the last map out."""

    def __init__(self, config: SwinV2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embedding = PatchEmbedding(config, rngs=rngs)
        self.patch_norm = LayerNorm(config.embed_dim, config.epsilon, rngs=rngs)
        self.positions = _positions(config, rngs) if config.absolute_positions else None
        self.stages = nnx.List([Stage(config, i, rngs=rngs) for i in range(len(config.depths))])
        self.final_norm = LayerNorm(config.width, config.epsilon, rngs=rngs)

    def __call__(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes images.

        Args:
          pixels: float [B, image_size, image_size, channels], normalised.
          key: for dropout and stochastic depth; None = deterministic.

        Returns:
          `dtype` [B, K', D'], after the final layer norm, row by row of the last map.

        Raises:
          ValueError: when the images are not of the configured size.
        """
        config = self.config
        expected = (config.image_size, config.image_size, config.channels)
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise ValueError(f"images of shape {pixels.shape}; expected [batch, *{expected}]")
        first, *keys = rng.split(key, 1 + len(self.stages))
        x = self.patch_norm(self.patch_embedding(pixels))
        if self.positions is not None:
            x += self.positions[...].astype(x.dtype)
        x = rng.dropout(x, config.dropout, first)
        for stage, stage_key in zip(self.stages, keys, strict=True):
            x = stage(constrain(x, "batch"), stage_key)
        return self.final_norm(x.reshape(x.shape[0], -1, config.width))
