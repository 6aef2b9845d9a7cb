"""The bytes that each device must send in a training step, whatever program runs it.

What is split over `fsdp` is gathered where it is used: once for the forward pass and once for the
backward pass, if one reaches it. The gradients of what is trained are summed over the devices that
saw different parts of the batch; where the parameter is split, each sums its own part. Tokens go to
their experts and back, and so do their gradients. Matrices travel in the compute dtype. Metrics,
norms and everything else of a few bytes are left out.
"""

from collections.abc import Iterator
import math
from typing import Any

from flax import nnx
import jax
import numpy as np

from moemoe_jax.aot.collectives import sent
from moemoe_jax.aot.flops import mixture_rows
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.parallel.axes import LOGICAL_RULES, shards
from moemoe_jax.parallel.sharding import path_name
from moemoe_jax.training.setup import Run

_STACKED = ("layers", "expert")


def training_minimum(config: ExperimentConfig, run: Run) -> dict[str, float]:
    """Bytes that one device sends in a step, by kind of collective."""
    state, frozen = run.abstract
    found = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0, "all-to-all": 0.0}
    for trained, tree in ((True, state.params), (False, frozen)):
        for name, variable in _variables(tree):
            _parameter(found, config, run, name, variable, trained)
    found["all-to-all"] += _dispatch(config, run)
    found["all-reduce"] += _tensor(config, run)
    return found


def _variables(tree: Any) -> Iterator[tuple[str, nnx.Variable]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return ((path_name(path), variable) for path, variable in leaves)


def _parameter(
    found: dict[str, float],
    config: ExperimentConfig,
    run: Run,
    name: str,
    variable: nnx.Variable,
    trained: bool,
) -> None:
    """Adds what one parameter costs: its gathers, and the sums of its gradient."""
    leaf, sizes = jax.tree.leaves(variable)[0], run.mesh.shape
    logical = variable.get_metadata()["logical_axes"]
    kept, gathered = [], []  # axes over which it stays split where it is used, and others
    for dim, axes in enumerate((*leaf.sharding.spec, *[None] * leaf.ndim)[: leaf.ndim]):
        names = (axes,) if isinstance(axes, str) else axes or ()
        stays = logical[dim] == "expert" or not set(names) & set(LOGICAL_RULES["batch"])
        (kept if stays else gathered).extend(names)
    matrix = sum(axis not in _STACKED for axis in logical) >= 2
    vision = name.startswith("image_encoder")
    dtype = config.model.vision.dtype if vision else config.model.text.dtype
    item = jax.numpy.dtype(dtype).itemsize if matrix else np.dtype(leaf.dtype).itemsize
    whole = leaf.size * item / math.prod(sizes[axis] for axis in kept)
    group = math.prod(sizes[axis] for axis in gathered)
    found["all-gather"] += _gathers(config, name, logical) * sent("all-gather", whole, group)
    if trained:
        copies = math.prod(
            sizes[axis] for axis in LOGICAL_RULES["batch"] if axis not in (*kept, *gathered)
        )
        found["reduce-scatter"] += sent("reduce-scatter", whole, group)
        found["all-reduce"] += sent("all-reduce", whole / group, copies)


def _gathers(config: ExperimentConfig, name: str, logical: tuple[str | None, ...]) -> int:
    """How often a parameter is needed whole: for each pass that multiplies with it."""
    if logical[0] == "vocab":  # a table: the gradient of looking up does not look at it
        return 1
    if config.train.trainable != "experts":
        return 2
    stack = name.partition("/")[0]
    mixtures = config.model.moe_layers
    decoder = mixtures.decoder != "none"
    reached = {"decoder": decoder, "lm_head": decoder}
    return 2 if reached.get(stack, getattr(mixtures, stack, "none") != "none") else 1


def _dispatch(config: ExperimentConfig, run: Run) -> float:
    """Bytes sent to experts and back, forward and backward, in all mixture layers."""
    model, data = config.model, config.data
    group = shards("expert", run.mesh)
    parts = shards("batch", run.mesh)
    answers = data.products_per_batch * data.questions_per_product * data.answer_length
    texts = sum(source.kind == "text" for source in model.sources)
    tokens = {
        "question_encoder": data.questions_per_product * data.question_tokens,
        "context_encoder": texts * data.text_length,
    }
    total = 0.0
    for stack in ("question_encoder", "context_encoder", "decoder"):
        depth = model.text.num_decoder_layers if stack == "decoder" else model.text.num_layers
        here = answers
        if stack != "decoder":
            here = data.products_per_batch * tokens[stack]
        # Frozen experts pass gradients on like any: to the experts and back once more.
        rows = mixture_rows(model.moe, here, parts) / parts
        size = rows * model.text.d_model * jax.numpy.dtype(model.text.dtype).itemsize
        layers = len(model.moe_layers.of(stack, depth))
        total += 4 * layers * sent("all-to-all", size, group)
    return total


def _tensor(config: ExperimentConfig, run: Run) -> float:
    """Bytes of the sums that splitting a block's matrices brings: after each product of two."""
    group = shards("mlp", run.mesh)
    if group == 1:
        return 0.0
    model, data = config.model, config.data
    products, questions = data.products_per_batch, data.questions_per_product
    text, item = model.text, jax.numpy.dtype(model.text.dtype).itemsize
    texts = sum(source.kind == "text" for source in model.sources)
    encoded = products * texts * data.text_length
    if model.question_encoder:
        encoded += products * questions * data.question_tokens
    size = 2 * text.num_layers * encoded * text.d_model * item
    answers = products * questions * data.answer_length
    size += 3 * text.num_decoder_layers * answers * text.d_model * item
    if model.has("image"):
        vision, wide = model.vision, jax.numpy.dtype(model.vision.dtype).itemsize
        side = vision.image_size // vision.patch_size
        for stage, depth in enumerate(vision.depths):
            pixels = products * (side // 2**stage) ** 2
            size += 2 * depth * pixels * vision.stage_width(stage) * wide
    backward = 2 if config.train.trainable != "experts" else 1
    return backward * sent("all-reduce", size / shards("batch", run.mesh), group)
