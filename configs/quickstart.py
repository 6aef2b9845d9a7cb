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
    # Texts take 30 to 90 tokens, so most of the second copy of the image's 64 stands alone.
    config.data.text_length, config.data.answer_length = 128, 6
    config.data.products_per_batch, config.data.questions_per_product = 32, 10
    # Most questions are answered by the text, and reading is learned much sooner than seeing.
    config.data.sources.text.dropout, config.data.sources.text.dropout_asks = 0.5, "untold"
    config.model.fusion.gate_norm = "softmax"  # an image by itself has all of the weight
    config.data.tokenizer_vocab_size = 2000
    # Products stand where they stand in all pictures, so that a place tells a collar from a hem.
    config.model.vision.absolute_positions = True
    config.model.text.num_layers = 1  # such texts need no more, and it halves what they cost
    config.model.text.dropout = config.model.vision.drop_path = 0.05
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 4e-3, 50
    config.train.epochs, config.train.eval_every = 6, 300
    if phase == "moe":
        base.experts_only(config, init_from="runs/dense")
        config.train.epochs = 1
        config.optimizer.learning_rate = 5e-4
    return config
