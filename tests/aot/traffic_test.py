"""The least bytes between a device and its memory, by hand."""

import jax
import pytest

from moemoe_jax.aot import programs, traffic
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.mesh import make_mesh
from tests.launch.tiny import get_config


def planned(phase="text", **changes):
    mapping = get_config(phase)
    mapping.optimizer.name, mapping.optimizer.ema_decay = "adamw", 0.0
    mapping.data.vocab_rows = 400
    with mapping.unlocked():
        mapping.update_from_flattened_dict(changes)
    config = from_config_dict(mapping, 400)
    return config, programs.plan_on(config, make_mesh(config.mesh, jax.devices()[:1]))


def sizes(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_an_update_moves_gradient_parameter_and_two_moments_there_and_back():
    config, run = planned("experts")
    found = traffic.training_traffic(config, run)
    state, frozen = run.abstract
    # float32; two counters of steps (4 bytes each) or so beside.
    assert found["optimizer"] == pytest.approx(2 * 4 * 4 * sizes(state.params), abs=100)
    # What comes after the first mixture is read in both passes, what comes before it in one.
    once, twice = (n * 4 * sizes((state.params, frozen)) for n in (1, 2))
    assert once < found["parameters"] < twice


def test_what_is_kept_grows_with_the_batch_and_not_with_the_parameters():
    products = (4, 8)
    kept = [
        traffic.kept_bytes(*planned(**{"data.products_per_batch": count})) for count in products
    ]
    assert 1.8 < kept[1] / kept[0] <= 2.0
    wide = traffic.kept_bytes(*planned(**{"data.products_per_batch": 4, "data.vocab_rows": 800}))
    scores = 4 * 2 * 4 * 400 * 4  # of 4 x 2 x 4 tokens, in float32
    assert wide - kept[0] <= 4 * scores


def test_answers_read_the_decoder_and_all_keys_for_every_token():
    config, run = planned(**{"answer.products_per_batch": 8, "answer.beams": 3})
    found = traffic.answering_traffic(config, run)
    # 8 texts of 16 rows that questions share, and 8 x 2 x 3 beams of 4 tokens; keys and values of
    # 2 heads x 8 channels in float32, in 2 layers: written once and read for each of 4 tokens.
    assert config.model.fusion.path == "shared"
    assert found["keys and values"] == (8 * 16 + 48 * 4) * 2 * 16 * 4 * 2 * (1 + 4)
    params = jax.tree.map(lambda leaf: leaf.size, run.abstract[0].params)
    every = sizes_of(params, "decoder") + sizes_of(params, "lm_head")
    tables = sizes_of(params, "decoder_embedding") + sizes_of(params, "question_embedding")
    tied = config.model.text.tie_word_embeddings
    every, tables = (every + 400 * 16, tables - 400 * 16) if tied else (every, tables)
    asked = sizes_of(params, "question_encoder")  # a program of its own reads these
    rest = sum(jax.tree.leaves(params)) - every - tables - asked
    assert found["parameters"] == 4 * (4 * every + rest)


def sizes_of(params, name):
    return sum(jax.tree.leaves(params[name])) if name in params else 0
