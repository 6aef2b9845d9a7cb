"""The quickstart, on the built-in catalogue: `dense`, then `moe` from it.

--config=configs/quickstart.py:dense
--config=configs/quickstart.py:moe --config.init.work_dir=runs/dense
"""

from configs import base

VARIANTS = ("dense", "moe")


def get_config(phase="dense"):
    config = base.get_config()
    config.data.source = "catalogue:products=4000,image_size=64"
    config.data.image_size = 64
    config.data.text_length, config.data.answer_length = 128, 8
    # A pooled question gives one weight a source: it need not be padded to the length of a text.
    config.data.question_length, config.model.fusion.gate = 16, "pooled"
    config.data.products_per_batch, config.data.questions_per_product = 16, 10
    config.data.tokenizer_vocab_size = 2000
    config.train.epochs = 5
    config.train.eval_every = 125
    if phase == "moe":
        base.experts_only(config)
        config.train.epochs = 4
        config.optimizer.learning_rate = 3e-4
    elif phase != "dense":
        raise ValueError(f"configs/quickstart.py:{phase} is unknown; use dense or moe")
    return config
