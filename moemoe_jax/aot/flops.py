"""Matrix products of a program by formula: what the model needs, whatever the program does.

Two operations a multiplication and addition; elementwise work and the optimizer are left out. A
product with parameters costs as much again for the gradient of its input and as much for that of
its parameters; a product of two activations, as much for each of the two. Only what is needed for
the parameters that are trained is counted.

Shapes: P products, Q questions, S sources, K source tokens, U distinct
questions, L answer tokens, D width, I all heads' channels, F hidden width, E experts, V vocabulary.
"""

import dataclasses

from moemoe_jax.aot.flops_text import Memory, Part, text_stack
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.nn.swinv2 import SwinV2Config
from moemoe_jax.nn.window_attention import BIAS_HIDDEN


@dataclasses.dataclass(frozen=True)
class Formula:
    """Operations by part of the model."""

    parts: dict[str, Part]

    def totals(self) -> dict[str, float]:
        """Sums over the parts: "model" (forward and backward), "again", and their "total"."""
        model = sum(p.forward + p.backward for p in self.parts.values())
        again = sum(p.again for p in self.parts.values())
        return {"model": model, "again": again, "total": model + again}


def training_flops(config: ExperimentConfig, shards: int = 1) -> Formula:
    """Counts one training step of the whole batch, on all devices together.

    Args:
      config: the settings.
      shards: parts that a batch is split into; each has queues of its own to the experts.
    """
    trained = config.train.trainable
    return _formula(config, shards, trained != "experts", trained != "backbone")


def answering_flops(config: ExperimentConfig, shards: int = 1) -> Formula:
    """Counts encoding a batch of products and decoding L tokens of every answer, token by token.

    The questions come encoded: a program of its own does so, once for all batches that ask them.

    Args:
      config: the settings; `answer` says how many products and beams.
      shards: as for `training_flops`.
    """
    steps, beams = config.data.answer_length, config.answer.beams
    formula = _formula(answered(config), shards, False, False, steps, beams)
    formula.parts.pop("question_encoder", None)
    return formula


def answered(config: ExperimentConfig) -> ExperimentConfig:
    """The settings with as many products a batch as are answered at a time."""
    data = dataclasses.replace(config.data, products_per_batch=config.answer.products_per_batch)
    return dataclasses.replace(config, data=data)


def _formula(
    config: ExperimentConfig,
    shards: int,
    dense: bool,
    experts: bool,
    steps: int = 1,
    beams: int = 1,
) -> Formula:
    """Counts a step that trains the dense part, the experts, both, or none and no alignment.

    `steps` is how many the decoder takes for an answer, `beams` how many answers a question.
    """
    model, data = config.model, config.data
    products, questions = data.products_per_batch, data.questions_per_product
    rows = data.distinct_questions or products * questions
    parts: dict[str, Part] = {}

    def stack(name: str, **shape) -> bool:
        layers = model.moe_layers.of(
            name, model.text.num_decoder_layers if name == "decoder" else model.text.num_layers
        )
        part = parts.setdefault(name, Part())
        split = (shards, config.mesh.expert)
        text_stack(part, model.text, model.moe, split, layers, dense, experts, **shape)
        return dense or (experts and bool(layers))

    asked = False
    if model.question_encoder:
        asked = stack(
            "question_encoder",
            rows=rows,
            length=question_rows(config),
            seen=data.question_tokens,
        )
    flows = False
    for source in model.sources:
        if source.kind == "text":
            flows |= stack("context_encoder", rows=products, length=data.text_length)
        else:
            parts["image_encoder"] = _vision(model.vision, products, dense)
            if model.vision.width != model.text.d_model:
                size = model.vision.tokens * model.vision.width * model.text.d_model
                parts["image_encoder"].linear(2.0 * products * size, dense, dense)
            flows |= dense
    parts["fusion"] = _fusion(config, rows, asked, flows, dense)
    literal = model.fusion.path == "literal"
    stack(
        "decoder",
        rows=products * questions * beams,
        length=data.answer_length,
        steps=steps,
        beams=beams,
        memory=Memory(
            rows=data.text_length if literal else read_rows(config),
            memories=products * (questions if literal else 1),
            flows=flows,
            weighed=asked,
        ),
    )
    mixtures = experts and bool(model.moe_layers.of("decoder", model.text.num_decoder_layers))
    reached = dense or mixtures or flows or asked
    head = parts["lm_head"] = Part()
    tokens = products * questions * beams * data.answer_length
    head.linear(2.0 * tokens * model.text.d_model * model.text.vocab_size, reached, dense)
    return Formula(parts)


def question_rows(config: ExperimentConfig) -> int:
    """The rows of an encoded question: its tokens, and what of its padding is read and differs."""
    return len(config.model.question_runs(config.data.question_tokens))


def read_rows(config: ExperimentConfig) -> int:
    """The rows of all sources of a product, which its questions share."""
    return sum(_rows(config))


def _rows(config: ExperimentConfig) -> list[int]:
    """The rows of each source: an image has its patches, however many tokens they stand for."""
    model, length = config.model, config.data.text_length
    patches = length if model.fusion.image_repeat == "interpolate" else model.vision.tokens
    return [patches if source.kind == "image" else length for source in model.sources]


def _vision(vision: SwinV2Config, images: int, trained: bool) -> Part:
    """SwinV2: patches, blocks, merges. Nothing before it needs a gradient."""
    part, remat = Part(), vision.remat
    side = -(-vision.image_size // vision.patch_size)
    patch = vision.patch_size**2 * vision.channels
    part.linear(2.0 * images * side * side * patch * vision.embed_dim, False, trained)
    for stage, depth in enumerate(vision.depths):
        width = vision.stage_width(stage)
        window, _ = vision.stage_window(stage)
        padded = -(-side // window) * window
        tokens, attended = images * side * side, images * padded * padded
        for _ in range(depth):
            part.linear(8.0 * attended * width * width, trained, trained, remat)
            part.pair(4.0 * attended * window**2 * width, trained, trained, remat)
            offsets = (2 * window - 1) ** 2
            part.linear(4.0 * offsets * BIAS_HIDDEN, False, trained, remat)
            heads = vision.heads[stage]
            part.linear(2.0 * offsets * BIAS_HIDDEN * heads, trained, trained, remat)
            hidden = 4.0 * tokens * width * int(vision.mlp_ratio * width)
            part.linear(hidden, trained, trained, remat)
        if stage < len(vision.depths) - 1:
            side = -(-side // 2)
            part.linear(16.0 * images * side * side * width * width, trained, trained)
    return part


def _fusion(config: ExperimentConfig, rows: int, asked: bool, flows: bool, dense: bool) -> Part:
    """Gate, alignment, a question's start token, and e itself on the literal path."""
    model, data, part = config.model, config.data, Part()
    products, questions = data.products_per_batch, data.questions_per_product
    sources, width, length = len(model.sources), model.text.d_model, data.text_length
    pairs = products * questions
    gate = model.fusion.gate
    if gate == "token":
        part.linear(2.0 * rows * question_rows(config) * width * sources, asked, dense)
    elif gate == "pooled":
        part.linear(2.0 * rows * width * sources, asked, dense)
    elif gate == "cross":
        met = pairs * sum(_rows(config)) * question_rows(config)
        part.pair(2.0 * met * width, asked, flows)
        part.linear(2.0 * pairs * question_rows(config) * width * sources, asked, dense)
        part.pair(2.0 * met, asked or flows, asked or dense)
    if model.fusion.path == "literal":
        part.pair(2.0 * pairs * sources * length * width, asked or dense, flows)
    if model.question_start:
        part.linear(2.0 * pairs * width * width, asked, dense)
    if model.question_encoder and (asked or flows or dense):
        _alignment(part, config, rows, asked, flows, dense)
    return part


def _alignment(
    part: Part, config: ExperimentConfig, rows: int, asked: bool, flows: bool, dense: bool
) -> None:
    model, data = config.model, config.data
    products, width = data.products_per_batch, model.text.d_model
    vector = width
    if model.alignment.reduce == "token_linear":
        vector = data.text_length  # what their rows give is spread to it
        part.linear(2.0 * rows * question_rows(config) * width, asked, dense)
        for source_rows in _rows(config):
            part.linear(2.0 * products * source_rows * width, flows, dense)
    met = data.questions_per_product if model.alignment.loss == "cosine" else rows
    for _ in model.sources:
        part.pair(2.0 * products * met * vector, asked or dense, flows or dense)
        part.pair(2.0 * products * met * vector, asked or dense, False)
        part.pair(2.0 * products * met * vector, flows or dense, False)
