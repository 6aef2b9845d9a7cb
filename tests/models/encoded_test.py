import re

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models import encoded
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.nn.rows import REPEATS

IMAGE = jnp.array([[[0.0], [8.0]]])


@pytest.mark.parametrize(
    ("repeat", "expected", "real"),
    [
        ("tile", [0, 8, 0, 8, 0, 8], 6),
        ("interleave", [0, 0, 0, 8, 8, 8], 6),
        # Token centres are at 1/6 ... 11/6 of a patch, patch centres at 1/2 and 3/2.
        ("interpolate", [0, 0, 8 / 3, 16 / 3, 8, 8], 6),
        ("pad", [0, 8, 0, 0, 0, 0], 2),
    ],
)
def test_an_image_is_stretched_in_the_order_of_its_name(repeat, expected, real):
    got = encoded.repeat_image(IMAGE, 6, repeat)
    if repeat == "interpolate":
        expected = np.interp((np.arange(6) + 0.5) / 3 - 0.5, [0, 1], [0, 8])
    else:
        assert got.rows is IMAGE  # whatever they stand for
    tokens = REPEATS[got.repeat].spread(got.rows[0, :, 0], 6)
    chex.assert_trees_all_close(tokens, jnp.array(expected, jnp.float32), atol=1e-5)
    chex.assert_trees_all_equal(got.valid, jnp.arange(6)[None] < real)


def test_every_repeat_is_tried_above_and_keeps_an_image_that_fits():
    assert set(encoded.IMAGE_REPEATS) == {"tile", "interleave", "interpolate", "pad"}
    for repeat in encoded.IMAGE_REPEATS:
        got = encoded.repeat_image(IMAGE, 2, repeat)
        chex.assert_trees_all_close(got.rows, IMAGE)
        chex.assert_trees_all_equal(got.valid, jnp.ones((1, 2), bool))


@pytest.mark.parametrize(
    ("repeat", "length", "message"),
    [
        ("tile", 100, "data.text_length 100 is not a multiple of the 64 image tokens; set data."
         "text_length=128, or model.fusion.image_repeat=interpolate"),
        ("interleave", 10, "not a multiple of the 64 image tokens; set data.text_length=64"),
        ("pad", 63, "data.text_length 63 is shorter than the 64 image tokens; set data.text_len"),
    ],
)  # fmt: skip
def test_a_text_length_that_the_image_cannot_fill_is_refused(repeat, length, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encoded.check_image_length(repeat, 64, length)


@pytest.mark.parametrize(
    ("repeat", "length"), [("tile", 128), ("interleave", 64), ("interpolate", 7), ("pad", 65)]
)
def test_a_text_length_that_fits_is_accepted(repeat, length):
    encoded.check_image_length(repeat, 64, length)


def test_the_mean_of_real_tokens_by_hand():
    tokens = jnp.array([[[1.0], [3.0], [50.0]], [[7.0], [7.0], [7.0]]])
    valid = jnp.array([[True, True, False], [False, False, False]])
    chex.assert_trees_all_close(
        encoded.mean_pool(Encoded(tokens, valid)), jnp.array([[2.0], [0.0]])
    )
    # Of the tokens 1 3 1 3, the first three.
    tiled = Encoded(tokens[:1, :2], jnp.array([[True, True, True, False]]), "tile")
    chex.assert_trees_all_close(encoded.mean_pool(tiled), jnp.array([[5 / 3]]), rtol=1e-6)
