"""Starting from a trained work directory: same parameters, or experts made of its dense blocks.

Parameters are matched layer by layer and by name, whether or not either model stores its layers
stacked for a scan. Every parameter of the new model must be accounted for, or it is an error.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.errors import UserError
from moemoe_jax.nn.params import ExpertParam, RouterParam
from moemoe_jax.nn.stack import Stack
from moemoe_jax.nn.upcycle import upcycle_feed_forward


class Taken(NamedTuple):
    """What came from where: names of parameters."""

    copied: list[str]
    upcycled: list[str]
    fresh: list[str]


def initialise_from(
    model: nnx.Module, trained: nnx.Module, *, noise: float, key: jax.Array
) -> Taken:
    """Sets the parameters of `model` from those of `trained`, in place.

    A parameter takes its namesake's value. An expert's parameter whose namesake is a dense block's
    becomes copies of it (upcycling). Routers without a namesake stay as they were initialised.

    Args:
      model: the model to set.
      trained: the model to start from.
      noise: of the experts' copies, relative to the block's standard deviation.
      key: of that noise.

    Raises:
      UserError: for a parameter that `trained` lacks, or has in another shape.
    """
    source = _Layerwise(trained).variables
    target = _Layerwise(model)
    taken = Taken([], [], [])
    for index, (name, variable) in enumerate(sorted(target.variables.items())):
        if name not in source:
            if isinstance(variable, RouterParam):
                taken.fresh.append(name)
                continue
            raise UserError(
                f"init.work_dir has no parameter {name}: its model is of another architecture; "
                "make the settings under model equal, but for model.moe and model.moe_layers"
            )
        value = source[name][...]
        dense = not isinstance(source[name], ExpertParam)
        if isinstance(variable, ExpertParam) and dense:
            count = variable[...].shape[0]
            leaf_key = jax.random.fold_in(key, index)
            value = upcycle_feed_forward(value, count, noise, leaf_key if noise else None)
            taken.upcycled.append(name)
        else:
            taken.copied.append(name)
        if value.shape != variable[...].shape:
            raise UserError(
                f"init.work_dir has {name} in shape {source[name][...].shape}, "
                f"this model needs {variable[...].shape}; make the settings under model equal, or "
                "start from its config.json: --config=WORKDIR/config.json"
            )
        variable[...] = jnp.asarray(value, variable[...].dtype)
    target.commit()
    return taken


class _Layerwise:
    """The parameters of a model by name, those of a stack layer by layer however it stores them."""

    def __init__(self, model: nnx.Module):
        self._model = model
        self._stacks = {p: m for p, m in nnx.iter_modules(model) if isinstance(m, Stack)}
        self._layers = {path: stack.layer_states() for path, stack in self._stacks.items()}
        self._rest = nnx.state(model)
        self.variables: dict[str, nnx.Variable] = {}
        for path, variable in nnx.to_flat_state(self._rest):
            if not any(path[: len(prefix)] == prefix for prefix in self._stacks):
                self.variables["/".join(map(str, path))] = variable
        for prefix, layers in self._layers.items():
            for index, layer in enumerate(layers):
                for path, variable in nnx.to_flat_state(layer):
                    self.variables["/".join(map(str, (*prefix, index, *path)))] = variable

    def commit(self) -> None:
        """Writes what was set in `variables` back to the model."""
        nnx.update(self._model, self._rest)
        for path, stack in self._stacks.items():
            stack.set_layer_states(self._layers[path])
