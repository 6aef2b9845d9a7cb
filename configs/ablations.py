r"""What the question's guidance gives: the dense model (Table 4's `qga`) with a part taken away.

python -m launch.train --config=configs/ablations.py:woqg --workdir=runs/woqg \
    --config.data.source=products.jsonl
python -m launch.train --config=configs/ablations.py:woqg,small --workdir=runs/woqg-small

`data.source` is what Table 4's rows are trained on, see configs/table4.py; by default 4000 products
of the built-in catalogue.

woqg    the sources are added up with weight 1; the question takes part in the alignment alone
woal    no alignment losses
s_enc   one text encoder for question and context: no question encoder, so no gate and no alignment

After a comma: a size of configs/paper.py (default: flan).
"""

from configs import paper
from moemoe_jax.config_tree import choose

VARIANTS = ("woqg", "woal", "s_enc")


def get_config(argument="woqg"):
    part, _, size = argument.partition(",")
    choose("configs/ablations.py", part, VARIANTS)
    config = paper.get_config(size or "flan")
    if part == "woal":
        config.loss.align_weight = 0.0
        return config
    config.model.fusion.gate = "unit"
    config.model.question_encoder = part != "s_enc"
    return config
