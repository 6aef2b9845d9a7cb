r"""Real products: the Kaggle "Fashion Product Images" folder (styles.csv and images/).

python -m launch.train --config=configs/fashion.py:hidden --workdir=runs/hidden \
    --config.data.source=fashion:FOLDER

full      titles as they are: they name most of the answers
hidden    for half of the products the words of all answers are taken out of the title, in training
          and in evaluation, so that the image has to give them

After a comma, in any number:
woqg          the sources are added up with weight 1 in place of the question's
image_only    without the title
text_only     without the image
moe           experts in the odd decoder layers, trained alone from a dense --config.init.work_dir
"""

from configs import base
from moemoe_jax.config_tree import choose

TITLES = ("full", "hidden")
CHANGES = ("woqg", "image_only", "text_only", "moe")
VARIANTS = (*TITLES, "hidden,woqg", "hidden,image_only", "hidden,text_only", "hidden,moe")


def get_config(argument="hidden"):
    titles, *changes = argument.split(",")
    choose("configs/fashion.py", titles, TITLES)
    config = base.get_config()
    _data(config.data)
    config.train.eval_every = 1000
    if titles == "full":
        # A title names most answers once: what drops out of it is nowhere else.
        config.model.text.dropout, config.train.epochs = 0.03, 15
    else:
        config.data.hide_answer_fraction, config.data.augment.hide_probability = 0.5, 0.3
        config.train.epochs = 80
    for change in changes:
        _change(config, choose("configs/fashion.py", change, CHANGES))
    return config


def _data(data):
    data.source = "fashion:data/fashion"
    data.sources.text.fields = ("title",)
    data.image_size, data.text_length, data.answer_length = 64, 64, 6
    # gender, subCategory, articleType, baseColour, season, usage: all in every batch.
    data.products_per_batch, data.questions_per_product = 32, 6
    data.tokenizer_vocab_size = 2000

    augment = data.augment
    augment.flip, augment.crop_scale_min = True, 0.5
    augment.brightness = augment.contrast = 0.1
    augment.word_dropout, augment.hide_probability = 0.1, 0.15
    data.sources.text.dropout = data.sources.image.dropout = 0.1


def _change(config, change):
    if change == "woqg":
        config.model.fusion.gate, config.optimizer.rate_scale = "unit", {}
    elif change == "image_only":
        del config.data.sources.text
    elif change == "text_only":
        del config.data.sources.image
    else:
        base.experts_only(config, init_from="runs/dense")
