r"""MoEMoE for a pod: Flan-T5-large and SwinV2-base backbones, 64 experts, the paper's recipe.

python -m launch.compile_check --config=configs/moemoe_scale.py --topology=v5e:16x16
python -m launch.train --config=configs/moemoe_scale.py --workdir=gs://…/scale \
    --config.data.source=products.jsonl --config.data.tokenizer=flan-t5-large

7.8 billion parameters, of which 6.6 are experts: they are spread over 16 chips, four to a chip,
and each is split over 8 more together with all else. `v5e` is for 256 chips of 16 GB, and
recomputes every block in the backward pass; `v5p` is for chips of 95 GB, and keeps what its matrix
products gave.
"""

from configs import paper
from moemoe_jax.config_tree import choose

VARIANTS = ("v5e", "v5p")


def get_config(chip="v5e"):
    choose("configs/moemoe_scale.py", chip, VARIANTS)
    config = paper.get_config("flan")
    _large(config.model)
    config.model.moe_layers.decoder = "odd"
    moe = config.model.moe
    moe.num_experts, moe.top_k = 64, 2
    # With a queue for every token at each of 64 experts, the worst case would be what memory has
    # to be kept for; what does not fit is dropped, and counted in the log.
    moe.capacity_factor = 1.25

    data = config.data
    data.vocab_rows = 32_128  # as published; a tokenizer has 28 pieces fewer
    data.products_per_batch = 2048
    config.answer.products_per_batch = 2048

    text, vision = config.model.text, config.model.vision
    text.dtype = vision.dtype = "bfloat16"
    text.scan_layers = True
    text.remat, vision.remat = ("full", True) if chip == "v5e" else ("dots", False)
    config.optimizer.warmup_steps = 1000  # a batch of thousands at the full rate from the start
    config.optimizer.clip_norm = 1.0
    config.mesh.fsdp, config.mesh.expert = 8, 16
    return config


def _large(model):
    text = model.text
    text.d_model, text.d_kv, text.num_heads, text.d_ff = 1024, 64, 16, 2816
    text.num_layers = text.num_decoder_layers = 24
    vision = model.vision
    vision.embed_dim, vision.depths, vision.heads = 128, (2, 2, 18, 2), (4, 8, 16, 32)
