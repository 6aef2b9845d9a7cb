r"""The quickstart, on the built-in catalogue: `dense`, then `moe` from it.

python -m launch.train --config=configs/quickstart.py:dense --workdir=runs/dense
python -m launch.train --config=configs/quickstart.py:moe --workdir=runs/moe \
    --config.init.work_dir=runs/dense
"""

from configs import base
from moemoe_jax.config_tree import choose

VARIANTS = ("dense", "moe")


def get_config(phase="dense"):
    choose("configs/quickstart.py", phase, VARIANTS)
    config = base.get_config()
    config.data.source = "catalogue:products=5000,image_size=64"
    config.data.image_size = 64
    # Texts take 90 to 127 tokens and the image's 64 are tiled: their last copy lies on padding,
    # where no text is mixed in, and small details are learned from there.
    config.data.text_length, config.data.answer_length = 192, 8
    # A pooled question gives one weight a source: it need not be padded to the length of a text.
    config.data.question_length, config.model.fusion.gate = 16, "pooled"
    config.data.products_per_batch, config.data.questions_per_product = 16, 10
    config.data.tokenizer_vocab_size = 2000
    config.model.text.dropout = config.model.vision.drop_path = 0.05
    config.train.epochs = 6
    config.train.eval_every = 750
    if phase == "moe":
        base.experts_only(config, init_from="runs/dense")
        config.train.epochs = 1
        config.optimizer.learning_rate = 5e-4
    return config
