r"""Table 5: the weight of the load-balancing loss.

python -m launch.train --config=configs/table5.py:decoder_0.1 --workdir=runs/decoder_0.1 \
    --config.data.source=products.jsonl
python -m launch.train --config=configs/table5.py:enc_dec_0.01,small --workdir=runs/enc_dec_0.01 \
    --config.init.work_dir=runs/qga-small

`data.source` is what `qga` of configs/table4.py was trained on: records as the README shows them.
Without it that is 4000 products of the built-in catalogue.

`decoder_*` is the `moemoe` of configs/table4.py, `enc_dec_*` its `enc_dec_odd` (the paper does not
say which row of Table 4 it varies; none has the accuracy that Table 5 prints). Experts are trained
from the `qga` in runs/qga; --config.init.work_dir names another.
"""

from configs import table4
from moemoe_jax.config_tree import choose

VARIANTS = ("decoder_0.01", "decoder_0.1", "decoder_0.5", "enc_dec_0.01", "enc_dec_0.1")


def get_config(argument="decoder_0.1"):
    row, _, size = argument.partition(",")
    choose("configs/table5.py", row, VARIANTS)
    stacks, _, weight = row.rpartition("_")
    name = {"decoder": "moemoe", "enc_dec": "enc_dec_odd"}[stacks]
    config = table4.get_config(f"{name},{size}")
    config.loss.aux_weight = float(weight)
    return config
