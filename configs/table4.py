r"""Table 4: where the mixtures stand, and what of the model is trained.

python -m launch.train --config=configs/table4.py:qga --workdir=runs/qga \
    --config.data.source=products.jsonl --config.data.tokenizer=flan-t5-base
python -m launch.train --config=configs/table4.py:moemoe --workdir=runs/moemoe \
    --config.data.source=products.jsonl
python -m launch.train --config=configs/table4.py:moemoe,small --workdir=runs/moemoe-small \
    --config.init.work_dir=runs/qga-small

The paper's products are not published. `data.source` is what to train on instead, the same for all
rows: records as the README shows them, with a text, an image and the values of some attributes.
Without it a row trains on 4000 products of the built-in catalogue, which tells whether it runs.
Rows that start from `qga` take its tokenizer; for the others `data.tokenizer` is a folder with one,
or one is trained on the texts.

A row, and after a comma a size of configs/paper.py (default: flan). `moemoe` is the paper's final
model, decoder_odd with its experts trained. The rows that train a part only start from the trained
`qga` in runs/qga; --config.init.work_dir names another. The table's first row, MXT, is another
model and not part of this project.
"""

from configs import base, paper
from moemoe_jax.config_tree import choose
from moemoe_jax.errors import UserError

QGA = "runs/qga"

# Row: mixture layers of both encoders, those of the decoder, what is trained. Layers count from 0.
ROWS = {
    "qga": ("none", "none", "all"),
    "enc_dec_full": ("all", "all", "all"),
    "enc_dec_odd": ("odd", "odd", "experts"),
    "enc_dec_even": ("even", "even", "experts"),
    "encoder_full": ("all", "none", "all"),
    "decoder_full": ("none", "all", "all"),
    "decoder_last": ("none", "last", "all"),
    "decoder_last2": ("none", "last2", "all"),
    "decoder_even": ("none", "even", "experts"),
    "decoder_odd_frozen": ("none", "odd", "backbone"),
    "moemoe": ("none", "odd", "experts"),
}
VARIANTS = tuple(ROWS)


def get_config(argument="moemoe"):
    row, _, size = argument.partition(",")
    if row == "mxt":
        raise UserError(f"configs/table4.py:mxt is another model; use {', '.join(VARIANTS)}")
    choose("configs/table4.py", row, VARIANTS)
    config = paper.get_config(size or "flan")
    encoders, decoder, trainable = ROWS[row]
    if trainable != "all":
        base.experts_only(config, init_from=QGA)
    layers = config.model.moe_layers
    layers.question_encoder = layers.context_encoder = encoders
    layers.decoder, layers.index_base = decoder, 0
    config.train.trainable = trainable
    return config
