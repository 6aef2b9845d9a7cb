"""The plain linear map and the embedding table that every backbone here is built from."""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.nn.params import Initializer, param
from moemoe_jax.parallel.axes import constrain, gathered


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product x W of x [..., in] and W [in, out], whose gradient by W is computed as xᵀ g.

    Left to itself, JAX takes (gᵀ x)ᵀ. The same number, but a CPU's matrix product wants its first
    factor transposed in memory, and a compiler does so while it still computes g, which is several
    times slower than transposing x. No forward-mode derivative.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(saved, gradient):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    by_x = jax.lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    return by_x, jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """y = x W (+ b), with `kernel` [in, out] and, if asked for, `bias` [out].

    Parameters are stored in float32 and used in `dtype`.

    Args:
      in_features: width of the input's last dimension.
      out_features: width of the output's last dimension.
      init: the kernel's initializer; a bias starts at zero.
      axes: logical names of the kernel's two dimensions; the bias takes the second, unless that is
        "embed": a vector of that width is not worth splitting.
      use_bias: whether there is a bias.
      dtype: the compute dtype, and that of the result.
      rngs: where the parameters' keys come from.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: Initializer,
        axes: Sequence[str | None] = (None, None),
        use_bias: bool = False,
        dtype: jnp.dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = jnp.dtype(dtype)
        self.axes = tuple(axes)
        self.kernel = param(rngs, (in_features, out_features), init, axes)
        zeros, bias_axes = nnx.initializers.zeros_init(), (None if axes[1] == "embed" else axes[1],)
        self.bias = param(rngs, (out_features,), zeros, bias_axes) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [..., in] to `dtype` [..., out]."""
        y = matmul(x.astype(self.dtype), self.weights())
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def weights(self) -> jax.Array:
        """The kernel as it is used: `dtype` [in, out], whole on every device but for `tensor`."""
        return gathered(self.kernel[...].astype(self.dtype), self.axes)


class Embed(nnx.Module):
    """A table [V, D] of token embeddings; `ids` outside it are a caller's bug, not clipped."""

    def __init__(
        self,
        vocab_size: int,
        features: int,
        *,
        init: Initializer,
        dtype: jnp.dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = jnp.dtype(dtype)
        self.axes = ("vocab", "embed")
        self.table = param(rngs, (vocab_size, features), init, self.axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Looks int [...] ids up: `dtype` [..., D]."""
        # Whole for its gradient as well: each device adds up its own rows' before they are parted.
        return jnp.take(constrain(self.weights(), "vocab", None), ids, axis=0)

    def weights(self) -> jax.Array:
        """The table as it is used: `dtype` [V, D], whole on every device but for `tensor`."""
        return gathered(self.table[...].astype(self.dtype), self.axes)
