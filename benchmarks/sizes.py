r"""The sizes that are measured, as settings; a config file for the rows that launch a training.

    python -m launch.train --config=benchmarks/sizes.py:tiny --workdir=runs/tiny

tiny      128 channels, 2 layers, 64 tokens, 64 px
small     T5-small's shape, SwinV2-tiny at 256 px, 128 tokens, 8 experts, top 2, in the decoder's
          odd layers
base      for an accelerator: Flan-T5-base's shape, but with tied word embeddings; SwinV2-tiny at
          256 px, 256 tokens, the same experts, in bfloat16

The model is the paper's: a weight for each token and source read from the question (eq 4), not
normalised, the image tiled to the text's length, |1 - cos| for alignment. Only the question is not
part of the context, so that a product need not be encoded again for each of its questions. These
have at most 8 tokens.
"""

import dataclasses

from configs import base
from moemoe_jax.config_tree import choose
from moemoe_jax.errors import UserError

DISTINCT_QUESTIONS = 40  # that products are asked; the question table of a large batch


@dataclasses.dataclass(frozen=True)
class Batches:
    """How much is computed at a time.

    Attributes:
      products: of a training batch of ours, by its questions a product.
      peer_rows: (product, question) pairs that the peer may take at a time.
      answered: products that we answer at a time.
      layer_tokens: tokens of a mixture layer that is measured by itself.
    """

    products: dict[int, int]
    peer_rows: tuple[int, ...]
    answered: int
    layer_tokens: int


BATCHES = {
    "tiny": Batches({1: 16, 6: 16, 38: 16}, (16, 64), 16, 4096),
    # Both sides of a row are there at a time: with more, not within 24 GiB.
    "small": Batches({1: 8, 6: 8, 38: 8}, (8, 16), 16, 4096),
    "base": Batches({1: 32, 6: 16, 38: 16}, (32, 96), 32, 16_384),
}


def get_config(argument="tiny"):
    """Settings, with one question a product and the built-in catalogue.

    Args:
      argument: a size; behind a comma a name of `CHANGES`.
    """
    size, *changes = argument.split(",")
    choose("benchmarks/sizes.py", size, tuple(BATCHES))
    config = base.get_config()
    _paper(config)
    _SHAPES[size](config)
    for change in changes:
        CHANGES[choose("benchmarks/sizes.py", change, tuple(CHANGES))](config)
    return config


def _mixture(config):
    """Gives tiny the experts that small has."""
    config.model.moe_layers.decoder = "odd"


def _fashion(config):
    """For "Fashion Product Images": the title is the text, and all six attributes are asked."""
    config.data.source = "fashion:data/fashion"
    config.data.sources.text.fields = ("title",)
    config.data.questions_per_product = 6


CHANGES = {"mixture": _mixture, "fashion": _fashion}


def _paper(config):
    """What both sizes share: the paper's readings, and a training as plain as they come."""
    fusion = config.model.fusion
    fusion.gate, fusion.gate_norm, fusion.padding, fusion.mask = "token", "none", "read", "ones"
    config.model.question_start = False
    config.data.question_length, config.data.answer_length = 8, 16
    config.data.questions_per_product = 1
    config.data.val_fraction = 0.0
    config.model.moe.num_experts, config.model.moe.top_k = 8, 2
    config.loss.align_weight = 1.0

    optimizer = config.optimizer
    optimizer.name, optimizer.schedule, optimizer.warmup_steps = "adamw", "constant", 0
    optimizer.learning_rate, optimizer.b2, optimizer.ema_decay = 1e-4, 0.999, 0.0
    optimizer.rate_scale = {}


def _tiny(config):
    text, data = config.model.text, config.data
    text.activation, text.d_ff = "relu", 512
    data.source = "catalogue:products=200,image_size=64"
    data.image_size, data.text_length = 64, 64
    data.tokenizer_vocab_size, data.vocab_rows = 1000, 2000
    data.products_per_batch = config.answer.products_per_batch = 16


def _small(config):
    text, data = config.model.text, config.data
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 512, 64, 8, 2048
    text.num_layers = text.num_decoder_layers = 6
    text.activation = "relu"
    _published(config)
    data.text_length = 128
    data.products_per_batch = config.answer.products_per_batch = 8


def _base(config):
    text, data = config.model.text, config.data
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 768, 64, 12, 2048
    text.num_layers = text.num_decoder_layers = 12
    text.activation = "gated-gelu"
    text.dtype = config.model.vision.dtype = "bfloat16"
    text.scan_layers = True
    _published(config)
    data.text_length = 256
    data.products_per_batch = config.answer.products_per_batch = 32


def _published(config):
    """What small and base share: SwinV2-tiny at 256 px, T5's vocabulary, and the experts."""
    vision, data = config.model.vision, config.data
    vision.patch_size, vision.embed_dim, vision.window_size = 4, 96, 8
    vision.depths, vision.heads = (2, 2, 6, 2), (3, 6, 12, 24)
    vision.pretrained_window_sizes = (0, 0, 0, 0)
    config.model.moe_layers.decoder = "odd"
    data.source = "catalogue:products=100,image_size=256"
    data.image_size, data.tokenizer_vocab_size, data.vocab_rows = 256, 1000, 32_128


_SHAPES = {"tiny": _tiny, "small": _small, "base": _base}


def settings(
    size: str,
    questions: int,
    products: int | None = None,
    mixture: bool = False,
    distinct: int = DISTINCT_QUESTIONS,
):
    """Settings of a batch of P products with Q questions each.

    Args:
      size: tiny, small or base.
      questions: Q.
      products: P; None takes those that the size trains with.
      mixture: experts in odd decoder layers also where the size has none.
      distinct: different questions that a batch asks, at most.

    Raises:
      UserError: for another size.
    """
    if size not in BATCHES:
        raise UserError(f"--sizes has {size!r}; choose from {', '.join(BATCHES)}")
    config = get_config(f"{size},mixture" if mixture else size)
    config.data.questions_per_product = questions
    config.data.products_per_batch = products or BATCHES[size].products[questions]
    config.answer.products_per_batch = config.data.products_per_batch
    config.data.distinct_questions = min(distinct, questions * config.data.products_per_batch)
    return config
