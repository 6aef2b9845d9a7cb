r"""MoEMoE on a slice of TPUs: Flan-T5-base, SwinV2-tiny at 256 px, 8 experts, the paper's recipe.

python -m launch.compile_check --config=configs/moemoe_base.py --topology=v5e:2x2
python -m launch.train --config=configs/moemoe_base.py:experts --workdir=runs/base \
    --config.data.source=products.jsonl

The model of configs/paper.py:flan with mixtures in the odd decoder layers. `experts` trains only
the experts and routers, from the dense model in runs/qga, whose tokenizer it takes; `all` trains
everything, with the tokenizer of `data.tokenizer`. Products are split over all chips, parameters
over pairs of them, experts over four.
"""

from configs import base, paper
from moemoe_jax.config_tree import choose

VARIANTS = ("all", "experts")


def get_config(trained="all"):
    config = paper.get_config("flan")
    if choose("configs/moemoe_base.py", trained, VARIANTS) == "experts":
        base.experts_only(config, init_from="runs/qga")
        # As many rows as runs/qga has; to plan without it, those of a published T5.
        config.data.tokenizer_vocab_size = 32_128
    else:
        config.data.vocab_rows = 32_128  # as published; a tokenizer has 28 pieces fewer
    config.model.moe_layers.decoder = "odd"
    config.model.moe.num_experts, config.model.moe.top_k = 8, 2

    text = config.model.text
    text.dtype = config.model.vision.dtype = "bfloat16"
    text.scan_layers = True
    config.mesh.fsdp, config.mesh.expert = 2, 2
    return config
