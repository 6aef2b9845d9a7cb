"""The bytes that each device must send in a step or for a batch's answers, whatever the program.

What is split over `fsdp` is gathered where it is used: once for the forward pass and once for the
backward pass, if one reaches it. The gradients of what is trained are summed over the devices that
saw different parts of the batch; where the parameter is split, each sums its own part. Tokens go to
their experts and back, and so do their gradients. Matrices travel in the compute dtype. Metrics,
norms and everything else of a few bytes are left out. Answering needs the forward pass's share.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import numpy as np

from moemoe_jax.aot.collectives import sent
from moemoe_jax.aot.flops import answered, question_rows
from moemoe_jax.aot.flops_text import mixture_rows
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.parallel.axes import LOGICAL_RULES, shards
from moemoe_jax.parallel.sharding import path_name
from moemoe_jax.training.setup import Run

QUESTIONS = ("question_encoder/", "question_embedding/")  # parameters that encode questions alone
_STACKED = ("layers", "expert")


def training_minimum(config: ExperimentConfig, run: Run) -> dict[str, float]:
    """Bytes that one device sends in a step, by kind of collective."""
    state, frozen = run.abstract
    found = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0, "all-to-all": 0.0}
    for trained, tree in ((True, state.params), (False, frozen)):
        for name, variable in variables(tree):
            need = need_of(config, run, name, variable)
            found["all-gather"] += need.passes * sent("all-gather", need.whole, need.group)
            if trained:
                found["reduce-scatter"] += sent("reduce-scatter", need.whole, need.group)
                found["all-reduce"] += sent("all-reduce", need.whole / need.group, need.copies)
    # Frozen experts pass gradients on like any: to the experts and back once more.
    asked = config.data.products_per_batch * config.data.questions_per_product
    found["all-to-all"] += 4 * _dispatch(config, run, asked)
    backward = 2 if config.train.trainable != "experts" else 1
    found["all-reduce"] += backward * _tensor(config, run, asked)
    return found


def answering_minimum(config: ExperimentConfig, run: Run) -> dict[str, float]:
    """Bytes that one device sends for the answers of a batch, by kind of collective.

    Gathered parameters are kept from token to token. Questions come encoded.
    """
    state, frozen = run.abstract
    needs = [
        need_of(config, run, name, variable)
        for tree in (state.params, frozen)
        for name, variable in variables(tree)
        if not name.startswith(QUESTIONS)
    ]
    config, beams = answered(config), config.answer.beams
    return {
        "all-gather": sum(sent("all-gather", need.whole, need.group) for need in needs),
        "all-reduce": _tensor(config, run, 0, beams),
        "all-to-all": 2 * _dispatch(config, run, 0, config.data.answer_length, beams),
    }


def variables(tree: Any) -> Iterator[tuple[str, nnx.Variable]]:
    """The parameters of a tree by name."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return ((path_name(path), variable) for path, variable in leaves)


@dataclasses.dataclass(frozen=True)
class Need:
    """How a step uses a parameter on one device.

    Attributes:
      whole: bytes in the dtype of use, of all that the device multiplies with.
      passes: how often it is needed, in a training step.
      group: devices that it is gathered from.
      copies: devices that hold the same part.
    """

    whole: float
    passes: int
    group: int
    copies: int


def need_of(config: ExperimentConfig, run: Run, name: str, variable: nnx.Variable) -> Need:
    """What one parameter, by name, is needed for."""
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
    copies = math.prod(
        sizes[axis] for axis in LOGICAL_RULES["batch"] if axis not in (*kept, *gathered)
    )
    return Need(whole, _passes(config, name, logical), group, copies)


def _passes(config: ExperimentConfig, name: str, logical: tuple[str | None, ...]) -> int:
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


def _dispatch(
    config: ExperimentConfig, run: Run, asked: int, steps: int = 1, beams: int = 1
) -> float:
    """Bytes sent to experts once, in all mixture layers.

    Of `asked` questions that are encoded; the decoder takes `steps` an answer.
    """
    model, data = config.model, config.data
    group = shards("expert", run.mesh)
    parts = shards("batch", run.mesh)
    answers = data.products_per_batch * data.questions_per_product * beams * data.answer_length
    texts = sum(source.kind == "text" for source in model.sources)
    tokens = {
        "question_encoder": asked * question_rows(config),
        "context_encoder": data.products_per_batch * texts * data.text_length,
    }
    total = 0.0
    for stack in ("question_encoder", "context_encoder", "decoder"):
        depth = model.text.num_decoder_layers if stack == "decoder" else model.text.num_layers
        here, times = answers // steps, steps
        if stack != "decoder":
            here, times = tokens[stack], 1
        if not here:
            continue
        _, rows = mixture_rows(model.moe, here, parts, group)
        size = times * rows / parts * model.text.d_model
        size *= jax.numpy.dtype(model.text.dtype).itemsize
        layers = len(model.moe_layers.of(stack, depth))
        total += layers * sent("all-to-all", size, group)
    return total


def _tensor(config: ExperimentConfig, run: Run, asked: int, beams: int = 1) -> float:
    """Bytes of the sums that splitting a block's matrices brings: after each product of two.

    Of the forward pass, with `asked` questions that are encoded.
    """
    group = shards("mlp", run.mesh)
    if group == 1:
        return 0.0
    model, data = config.model, config.data
    products, questions = data.products_per_batch, data.questions_per_product
    text, item = model.text, jax.numpy.dtype(model.text.dtype).itemsize
    texts = sum(source.kind == "text" for source in model.sources)
    encoded = products * texts * data.text_length
    if model.question_encoder:
        encoded += asked * question_rows(config)
    size = 2 * text.num_layers * encoded * text.d_model * item
    answers = products * questions * beams * data.answer_length
    size += 3 * text.num_decoder_layers * answers * text.d_model * item
    if model.has("image"):
        vision, wide = model.vision, jax.numpy.dtype(model.vision.dtype).itemsize
        side = vision.image_size // vision.patch_size
        for stage, depth in enumerate(vision.depths):
            pixels = products * (side // 2**stage) ** 2
            size += 2 * depth * pixels * vision.stage_width(stage) * wide
    return sent("all-reduce", size / shards("batch", run.mesh), group)
