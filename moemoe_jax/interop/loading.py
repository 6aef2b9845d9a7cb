"""A folder of Hugging Face weights as a model of ours, by itself."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os

from flax import nnx
import jax
from jax.sharding import Mesh

from moemoe_jax.interop.fill import fill
from moemoe_jax.interop.plan import Plan, make_plan
from moemoe_jax.interop.slots import Path, slots
from moemoe_jax.interop.swinv2_map import swinv2_map
from moemoe_jax.interop.text_config import text_model
from moemoe_jax.interop.vision_config import vision_config
from moemoe_jax.interop.weights import open_weights
from moemoe_jax.models.seq2seq import Seq2Seq
from moemoe_jax.nn.params import Keys
from moemoe_jax.nn.swinv2 import SwinV2
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.sharding import param_shardings

ALONE = {role: (role,) for role in ("embedding", "encoder", "decoder", "lm_head")}


def load_text(folder: str | os.PathLike, mesh: Mesh | None = None, **changes) -> Seq2Seq:
    """Loads the encoder-decoder of a T5 or Switch Transformer.

    Args:
      folder: as `save_pretrained` or a download leaves it.
      mesh: where its parameters go; by default the first device.
      **changes: of the `T5Config` that the files give: dtype, scan_layers, remat, dropout.

    Raises:
      UserError: for a folder that is no such model; names the file.
    """
    weights = open_weights(folder)
    found = text_model(weights)
    text = dataclasses.replace(found.config.text, **changes)
    config = dataclasses.replace(found.config, text=text)
    model = nnx.eval_shape(lambda: Seq2Seq(config, rngs=Keys(jax.random.key(0))))
    return _load(model, lambda names: make_plan([(weights, found.tensor_map(ALONE))], names), mesh)


def load_vision(folder: str | os.PathLike, mesh: Mesh | None = None) -> SwinV2:
    """Loads a SwinV2; `folder` and `mesh` are as for `load_text`."""
    weights = open_weights(folder)
    config = vision_config(weights)
    model = nnx.eval_shape(lambda: SwinV2(config, rngs=Keys(jax.random.key(0))))
    tensor_map = swinv2_map({"vision": ("",)}, weights.names())
    return _load(model, lambda names: make_plan([(weights, tensor_map)], names), mesh)


def _load(model: nnx.Module, plan: Callable[[Mapping], Plan], mesh: Mesh | None) -> nnx.Module:
    graph, state = nnx.split(model)
    names = slots(model)
    if mesh is None:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return nnx.merge(graph, fill(state, param_shardings(state, mesh), names, plan(names), nothing))


def nothing(paths: Sequence[Path]) -> dict[Path, jax.Array]:
    """What initialises a model that its folder fills to the last parameter."""
    if paths:
        raise ValueError(f"{len(paths)} parameters have no source, the first {paths[0]}")
    return {}
