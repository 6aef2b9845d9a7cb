"""Tiny folders to import, and a config that they fit."""

from moemoe_jax.data.tokenizer import Tokenizer
from tests.interop import torch_models
from tests.launch import tiny

WORDS = "red blue green shirt shoe cotton wool color material sleeve long short for men women kids"
ROWS = 480  # of the token tables, more than the tokenizer's pieces
VISION = {
    "image_size": 16,
    "embed_dim": 8,
    "depths": [1],
    "num_heads": [2],
    "window_size": 2,
    "pretrained_window_sizes": [0],
}
SMALL = {"d_model": 16, "d_kv": 4, "d_ff": 24, "vocab_size": ROWS}


def save_text(name, folder, **changes):
    """A model of `torch_models.TEXTS` with a tokenizer; returns the PyTorch model."""
    model = torch_models.save_text(name, folder, **(SMALL | changes))
    Tokenizer.train([WORDS], 400).save(folder)
    return model


def save_vision(folder, kind="Swinv2Model"):
    return torch_models.save_vision(folder, kind, **VISION)


def config(phase="dense"):
    """The tiny config of the command line's tests; sizes follow from the files."""
    return tiny.get_config(phase)
