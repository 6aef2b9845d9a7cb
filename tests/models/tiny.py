"""A MoEMoE small enough to compile in seconds, and batches for it with every kind of hole."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.models.build import abstract_model
from moemoe_jax.models.config import MoELayers, MoEMoEConfig, SourceSpec
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.models.moemoe import MoEMoE
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.swinv2 import SwinV2Config
from moemoe_jax.nn.t5 import T5Config

TEXT = T5Config(
    vocab_size=50,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_heads=4,
    num_layers=1,
    num_decoder_layers=2,
    dropout=0.0,
)
VISION = SwinV2Config(
    image_size=16,
    embed_dim=8,
    depths=(2,),
    heads=(2,),
    window_size=4,
    pretrained_window_sizes=(0,),
    drop_path=0.0,
)
# For `jax.jit(compiler_options=…)`: compiles in about half the time, to a slower program.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Text alone: what a test that is not about images compiles.
DENSE = MoEMoEConfig(
    text=TEXT,
    vision=VISION,
    sources=(SourceSpec("title", "text"), SourceSpec("description", "text")),
    text_length=8,
)
MIXTURE = dataclasses.replace(
    DENSE,
    moe=MoEConfig(num_experts=4, top_k=2, router_std=1.0),
    moe_layers=MoELayers(decoder="odd"),
)
WITH_IMAGE = dataclasses.replace(
    MIXTURE,
    sources=(SourceSpec("image", "image"), SourceSpec("text", "text")),
    text_length=16,
    fusion=FusionConfig(image_repeat="tile"),
)


def random_model(config: MoEMoEConfig, seed: int = 0) -> MoEMoE:
    """A model whose weights are all random and of order one; drawn by numpy: nothing compiles."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.normal(size=leaf.shape)
        values = values * leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 1.0 + 0.1 * values
        return jnp.asarray(values, leaf.dtype)

    graph, state = nnx.split(abstract_model(config))
    return nnx.merge(graph, jax.tree.map(draw, state))


def batch(
    config: MoEMoEConfig, products: int = 4, questions: int = 3, length: int = 6, seed: int = 0
) -> dict:
    """A batch as the pipeline makes it: int32, uint8 and bool arrays (see `data.batching`).

    The last product is padding; the second has a padding question and lacks the first source, the
    third lacks the second. Questions are shared: P + 2 distinct ones, and a last row of padding.
    """
    rng = np.random.default_rng(seed)
    width, vocabulary = config.text_length, config.text.vocab_size

    def ids(rows: int, columns: int) -> np.ndarray:
        tokens = rng.integers(2, vocabulary, (rows, columns)).astype(np.int32)
        for row, end in zip(tokens, rng.integers(2, columns + 1, rows), strict=True):
            row[end - 1], row[end:] = 1, 0
        return tokens

    distinct = products + 2
    question_ids = np.concatenate([ids(distinct, width), np.zeros((1, width), np.int32)])
    index = np.stack([rng.permutation(distinct)[:questions] for _ in range(products)])
    valid = np.ones((products, questions), bool)
    valid[-1], valid[1, -1] = False, False
    answers = ids(products * questions, length).reshape(products, questions, length)
    sources, present = {}, {}
    for number, source in enumerate(config.sources):
        has = np.ones(products, bool)
        has[[-1, number + 1]] = False
        side = config.vision.image_size
        if source.kind == "image":
            value = rng.integers(0, 256, (products, side, side, 3)).astype(np.uint8)
            value[~has] = 120
        else:
            value = ids(products, width)
            value[~has] = np.arange(width) == 0  # a lone </s>
        sources[source.name], present[source.name] = value, has
    return {
        "question_ids": question_ids,
        "question_index": np.where(valid, index, 0).astype(np.int32),
        "question_valid": valid,
        "answer_ids": np.where(valid[..., None], answers, 0),
        "sources": sources,
        "source_valid": present,
    }
