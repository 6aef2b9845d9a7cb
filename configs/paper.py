r"""The paper's model at full size: a base T5 and SwinV2-tiny at 256 px, and the paper's recipe.

python -m launch.train --config=configs/paper.py:flan --workdir=runs/qga \
    --config.data.source=products.jsonl --config.data.tokenizer=flan-t5-base

`flan` has the shape of Flan-T5-base (385 million parameters), `t5` that of T5-base (360 million);
`small` makes the same choices in a model for a few cores. What the paper leaves open is read to
the letter; every reading is a setting. This is the dense model (the tables' QGA); the mixtures are
made from it, see configs/table4.py.
"""

from configs import base
from moemoe_jax.config_tree import choose

VARIANTS = ("flan", "t5", "small")


def get_config(size="flan"):
    config = base.get_config()
    if choose("configs/paper.py", size, VARIANTS) == "small":
        _small(config)
    else:
        _full(config, size)
    _readings(config)
    return base.paper_recipe(config)


def _full(config, size):
    text = config.model.text
    text.d_model, text.d_kv, text.num_heads = 768, 64, 12
    text.num_layers = text.num_decoder_layers = 12
    if size == "flan":
        text.d_ff, text.activation, text.tie_word_embeddings = 2048, "gated-gelu", False
    else:
        text.d_ff, text.activation, text.tie_word_embeddings = 3072, "relu", True
    text.scan_layers = True  # 36 layers compile as quickly as a few

    vision = config.model.vision
    vision.patch_size, vision.embed_dim, vision.window_size = 4, 96, 8
    vision.depths, vision.heads = (2, 2, 6, 2), (3, 6, 12, 24)
    vision.pretrained_window_sizes = (0, 0, 0, 0)

    data = config.data
    data.source = "catalogue:products=4000,image_size=256"
    data.image_size, data.text_length, data.answer_length = 256, 256, 16
    data.tokenizer_vocab_size = 32_000


def _small(config):
    # Four layers a stack, so that odd, even, last and last2 are different sets of layers.
    config.model.text.num_layers = config.model.text.num_decoder_layers = 4
    data = config.data
    data.source = "catalogue:products=4000,image_size=64"
    data.image_size, data.text_length, data.answer_length = 64, 128, 8
    data.tokenizer_vocab_size = 2000


def _readings(config):
    # One question a row, part of the context (section 3); nothing else tells the decoder.
    config.data.context_includes_question = True
    config.data.questions_per_product = 1
    config.model.question_start = False
    config.model.share_embeddings = "context_decoder"

    # Eqs 3-5: the image tiled to the text's length, one raw weight a token and source.
    fusion = config.model.fusion
    fusion.image_repeat, fusion.gate, fusion.gate_norm = "tile", "token", "none"
    fusion.padding, fusion.mask = "read", "ones"
    fusion.path = "literal"  # with one question a product there is nothing to share

    # Eqs 6-7: a linear map of each token to a number, another for each vector; |1 - cos|.
    alignment = config.model.alignment
    alignment.reduce, alignment.loss, alignment.share_projection = "token_linear", "cosine", False

    # Eqs 9-10, for the layers that are mixtures. The paper gives neither number.
    moe = config.model.moe
    moe.num_experts, moe.top_k = 4, 2
    moe.gate, moe.noise, moe.aux_prob = "topk_softmax", "gaussian", "full_softmax"
    moe.routing_level, moe.capacity_factor = "token", None
    config.loss.aux_reduce = "sum"
