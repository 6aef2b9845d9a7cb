"""Windows of a map: cutting and joining, the shift's mask, and relative positions (Swin v1 and v2).

Pure functions. Those that depend on sizes alone are numpy and run once, when a model is traced;
those on arrays are pads, reshapes and slices, so neither they nor their gradients gather.

Shapes: B batch, M and N height and width of a map, C channels, W windows, w side of a window,
H heads. Windows, and the positions in a window, are numbered row by row.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads float [B, M, N, C] with zeros, below and on the right, to multiples of `multiple`."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else x


def partition(x: jax.Array, window: int) -> jax.Array:
    """Cuts [B, M, N, C] into windows [B, W, w·w, C]; `window` (w) divides M and N."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def join(windows: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of `partition`: windows [B, W, w·w, C] back to [B, `height`, `width`, C]."""
    batch, _, area, channels = windows.shape
    window = math.isqrt(area)
    x = windows.reshape(batch, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, height, width, channels)


def space_to_depth(x: jax.Array) -> jax.Array:
    """Stacks each 2 x 2 neighbourhood into channels: [B, M, N, C] -> [B, M/2, N/2, 4·C].

    The order is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1): down first, as trained weights
    expect.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Who may attend to whom after a map was rolled by (-`shift`, -`shift`).

    Rolling brings rows and columns of the opposite border into the last windows; those must not
    meet their new neighbours. Each axis falls into three regions, and only positions of the same
    region in both axes see each other.

    Args:
      height: M of the (padded) map, a multiple of `window`.
      width: N of the map, likewise.
      window: side of a window.
      shift: how far the map was rolled, 0 < shift < window.

    Returns:
      bool [W, w·w, w·w], True = may attend.
    """

    def regions(length: int) -> np.ndarray:
        index = np.arange(length)
        return (index >= length - window).astype(int) + (index >= length - shift)

    labels = 3 * regions(height)[:, None] + regions(width)[None, :]
    labels = labels.reshape(height // window, window, width // window, window)
    labels = labels.swapaxes(1, 2).reshape(-1, window * window)
    return labels[:, :, None] == labels[:, None, :]


def relative_coordinates(window: int, pretrained_window: int = 0) -> np.ndarray:
    """The log-spaced offsets between two positions of a window (SwinV2, eq 4).

    An offset is scaled to [-8, 8], by the size of the window that the weights were trained with,
    then becomes sign(x)·log2(1 + |x|) / log2(8).

    Args:
      window: side w of a window.
      pretrained_window: side of the windows in pre-training, 0 = the same.

    Returns:
      float32 [2w-1, 2w-1, 2]: entry [w-1+i, w-1+j] is for a query i rows below and j columns to the
      right of its key.
    """
    offsets = np.arange(1 - window, window, dtype=np.float64)
    offsets *= 8.0 / max((pretrained_window or window) - 1, 1)
    offsets = np.sign(offsets) * np.log2(1.0 + np.abs(offsets)) / 3.0
    return np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).astype(np.float32)


def _toeplitz(x: jax.Array) -> jax.Array:
    """Unrolls offsets into pairs: [2w-1, ...] -> [w, w, ...], out[i, k] = x[w-1 + i-k].

    Rows one shorter than the period of a repeated sequence start one entry earlier each.
    """
    window = (x.shape[0] + 1) // 2
    tail = [(0, 0)] * (x.ndim - 1)
    period = jnp.pad(x[::-1], [(0, 1), *tail])
    rows = jnp.tile(period, (window, *[1] * (x.ndim - 1)))[: window * (2 * window - 1)]
    return rows.reshape(window, 2 * window - 1, *x.shape[1:])[:, window - 1 :]


def pairwise(table: jax.Array) -> jax.Array:
    """Spreads a value per offset over the pairs of positions that are so far apart.

    Args:
      table: float [2w-1, 2w-1, H], by the offset query - key, as in `relative_coordinates`.

    Returns:
      float [H, w·w, w·w]: query, key.
    """
    window, heads = (table.shape[0] + 1) // 2, table.shape[-1]
    rows = _toeplitz(table)  # [rows of query, key, 2w-1, H]
    pairs = _toeplitz(jnp.moveaxis(rows, 2, 0))  # [columns of query, key, rows of query, key, H]
    return pairs.transpose(4, 2, 0, 3, 1).reshape(heads, window * window, window * window)
