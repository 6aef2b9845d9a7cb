"""The published sizes, with random weights that transformers saves: CI's second step.

Each model's PyTorch answers are computed first, and it is let go before ours is loaded: no more
than one of them is in memory. Differences are printed at the end of the session.
"""

import gc

import numpy as np
import pytest
import torch

from moemoe_jax.interop.loading import load_text, load_vision
from tests.interop import ours, torch_models

pytestmark = pytest.mark.slow

BASE = {"d_model": 768, "d_kv": 64, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}
SMALL = {"d_model": 512, "d_kv": 64, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8}
START = {"decoder_start_token_id": 0}
MULTILINGUAL = SMALL | START | {"d_ff": 1024, "vocab_size": 250112}
TEXTS = {
    "t5-base": ("T5", BASE | START | {"d_ff": 3072}, False),
    "flan-t5-base": (
        "T5",
        BASE | START | torch_models.GATED | {"d_ff": 2048, "tie_word_embeddings": False},
        True,
    ),
    "mt5-small": ("MT5", MULTILINGUAL, True),
    "umt5-small": ("UMT5", MULTILINGUAL, True),
    "switch-base-8": (
        "SwitchTransformers",
        BASE
        | START
        | {
            "d_ff": 3072,
            "num_experts": 8,
            "num_sparse_encoder_layers": 6,
            "num_sparse_decoder_layers": 6,
        },
        False,
    ),
}
BASE_VISION = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
TINY_VISION = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
WINDOW_8 = {"image_size": 256, "window_size": 8, "pretrained_window_sizes": [0, 0, 0, 0]}
VISIONS = {
    "swinv2-tiny-window8-256": TINY_VISION | WINDOW_8,
    "swinv2-base-window8-256": BASE_VISION | WINDOW_8,
    "swinv2-base-window12to16-256": BASE_VISION
    | WINDOW_8
    | {"window_size": 16, "pretrained_window_sizes": [12, 12, 12, 6]},
}
TEXT_IDS = torch_models.ids((40, 7, 23, 31, 2, 18, 36, 12), 40, 30_000)
ANSWERS = torch_models.ids((12, 5, 9, 3, 7, 12, 10, 4), 12, 30_000, seed=1)
STEPS = 32
TOLERANCE = 1e-4


def compare(record_property, what, found, expected):
    """Asserts that the largest absolute difference is within the tolerance, and records it."""
    found, expected = np.asarray(found), np.asarray(expected)
    difference = float(np.abs(found - expected).max())
    record_property("parity", (what, difference, float(expected.std())))
    assert expected.std() > 0.05
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_model(name, tmp_path, record_property):
    torch.manual_seed(0)
    theirs = torch_models.text_model(*TEXTS[name])
    theirs.save_pretrained(tmp_path)
    hidden = torch_models.hidden_states(theirs, TEXT_IDS)
    with torch.no_grad():
        logits = torch_models.scores(theirs, TEXT_IDS, ANSWERS).numpy()
    ids = torch_models.greedy(theirs, TEXT_IDS, STEPS)
    del theirs
    gc.collect()

    model = load_text(tmp_path, scan_layers=True)
    real = TEXT_IDS != 0
    found = ours.jitted(lambda m, x: m.encode(x), model, TEXT_IDS)
    compare(record_property, "hidden states", np.asarray(found)[real], hidden[real])
    real = ANSWERS != 0
    found = ours.jitted(lambda m, *a: m(*a), model, TEXT_IDS, ANSWERS)
    compare(record_property, "logits", np.asarray(found)[real], logits[real])
    found = ours.jitted(lambda m, x: ours.greedy(m, x, STEPS), model, TEXT_IDS)
    np.testing.assert_array_equal(found, ids)
    assert len(np.unique(ids)) > 2


@pytest.mark.parametrize("name", VISIONS)
def test_an_image_model(name, tmp_path, record_property):
    theirs = torch_models.save_vision(tmp_path, **VISIONS[name])
    side = VISIONS[name]["image_size"]
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    del theirs
    gc.collect()

    found = ours.jitted(lambda m, x: m(x), load_vision(tmp_path), pixels)
    compare(record_property, "hidden states", found, expected)
