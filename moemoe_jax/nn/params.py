"""Parameters: one way to make them, and the types that decide what is trained.

Every parameter carries the names of its logical axes; `parallel.sharding` maps those names to the
mesh. Experts and routers are types of their own, so that "train only the experts" is a filter on
types and a frozen parameter costs no gradient and no optimizer memory.
"""

from collections.abc import Callable, Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from moemoe_jax.parallel.axes import spec_for

LOGICAL_AXES = frozenset({"vocab", "embed", "mlp", "heads", "expert", "layers"})

Initializer = Callable[..., jax.Array]

# One function for each value, so that parameters which are drawn alike share a program.
normal = functools.cache(nnx.initializers.normal)
constant = functools.cache(nnx.initializers.constant)


class ExpertParam(nnx.Param):
    """A parameter of the experts of a mixture layer, stacked along a leading expert axis."""


class RouterParam(nnx.Param):
    """A parameter of a router: what decides which experts a token goes to."""


class Keys:
    """Keys for the parameters of a model, one after the other: those of `nnx.Rngs(params=key)`.

    That one counts in an array, and to look at one while JAX traces takes the longer the more was
    traced before: most of the time in which a model of a few hundred parameters is made.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


class PlacedKeys(Keys):
    """Keys for parameters that are drawn one by one, each where it belongs on a mesh.

    A program that draws all of them has the code of every single draw, so that it takes long to
    compile and long to fetch from those that were kept. Those of one shape and kind share it here.
    """

    def __init__(self, key: jax.Array, mesh: Mesh):
        super().__init__(key)
        self._mesh = mesh

    def draw(self, init: Initializer, shape: tuple, axes: tuple, dtype: jnp.dtype) -> jax.Array:
        """The next parameter's values; the arguments are those of `param`."""
        place = NamedSharding(self._mesh, spec_for(axes, shape, self._mesh)[0])
        return _drawing(init, shape, dtype, place)(self.params())


@functools.lru_cache(maxsize=1024)
def _drawing(init: Initializer, shape: tuple, dtype: jnp.dtype, place: NamedSharding) -> Callable:
    return jax.jit(lambda key: init(key, shape, dtype), out_shardings=place)


def param(
    rngs: nnx.Rngs | Keys,
    shape: Sequence[int],
    init: Initializer,
    axes: Sequence[str | None],
    kind: type[nnx.Param] = nnx.Param,
    dtype: jnp.dtype = jnp.float32,
) -> nnx.Param:
    """Makes one parameter.

    Args:
      rngs: where its key comes from (the `params` stream).
      shape: its shape.
      init: called as `init(key, shape, dtype)`.
      axes: the logical name of each dimension, or None for one that is never sharded.
      kind: `nnx.Param` for the backbone, `ExpertParam` or `RouterParam` for mixture layers.
      dtype: of the stored values; the compute dtype is the layer's.

    Raises:
      ValueError: when `axes` does not name each dimension with a known name.
    """
    if len(axes) != len(shape) or not {a for a in axes if a is not None} <= LOGICAL_AXES:
        raise ValueError(f"axes {tuple(axes)} do not name the dimensions of shape {tuple(shape)}")
    shape, axes = tuple(shape), tuple(axes)
    if isinstance(rngs, PlacedKeys):
        value = rngs.draw(init, shape, axes, dtype)
    else:
        value = init(rngs.params(), shape, dtype)
    return kind(value, logical_axes=axes)
