import dataclasses

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.models.config import MoELayers
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.training.initialise import initialise_from
from tests.models.tiny import DENSE, batch, random_model

KEY = jax.random.key(0)


def text(**changes):
    return dataclasses.replace(DENSE.text, num_layers=2, num_decoder_layers=4, **changes)


TRAINED = dataclasses.replace(DENSE, text=text())
SPARSE = dataclasses.replace(
    TRAINED,
    moe=MoEConfig(num_experts=3, top_k=2, router_std=1.0),
    moe_layers=MoELayers(decoder="odd"),
)


def with_(config, **changes):
    return dataclasses.replace(config, text=text(**changes))


def logits(model):
    graph, params = nnx.split(model)
    data = batch(DENSE)
    run = jax.jit(lambda params: nnx.merge(graph, params)(data).logits)
    real = (data["answer_ids"] != 0) & data["question_valid"][..., None]
    return run(params)[real]


@pytest.mark.parametrize(("stacked_before", "stacked_after"), [(True, False), (False, True)])
def test_a_mixture_made_of_a_dense_model_has_its_logits(stacked_before, stacked_after):
    trained = random_model(with_(TRAINED, scan_layers=stacked_before), seed=1)
    model = random_model(with_(SPARSE, scan_layers=stacked_after), seed=2)
    routers = [state for path, state in nnx.to_flat_state(nnx.state(model)) if "router" in path]
    before = jax.tree.map(jnp.copy, routers)
    taken = initialise_from(model, trained, noise=0.0, key=KEY)
    assert sorted(taken.upcycled) == [
        f"decoder/stack/{layer}/feed_forward/{part}/kernel"
        for layer in (1, 3)
        for part in ("wi", "wo")
    ]
    assert taken.fresh == [f"decoder/stack/{n}/feed_forward/router/kernel" for n in (1, 3)]
    assert "decoder/stack/2/feed_forward/wi/kernel" in taken.copied
    after = [state for path, state in nnx.to_flat_state(nnx.state(model)) if "router" in path]
    chex.assert_trees_all_equal(after, before)
    expected = logits(trained)
    chex.assert_trees_all_close(logits(model), expected, atol=2e-6, rtol=1e-6)
    assert jnp.std(expected) > 0.1


def test_a_mixture_goes_on_as_it_was_stacked_or_not():
    trained = random_model(with_(SPARSE, scan_layers=True), seed=1)
    model = random_model(SPARSE, seed=2)
    taken = initialise_from(model, trained, noise=0.5, key=KEY)  # for copies of a dense block only
    assert not taken.upcycled
    assert not taken.fresh
    for layer in range(4):
        chex.assert_trees_all_equal(
            model.decoder.stack.layer_states()[layer], trained.decoder.stack.layer_states()[layer]
        )
    chex.assert_trees_all_equal(
        nnx.state(model.question_encoder.stack.blocks[1]),
        trained.question_encoder.stack.layer_states()[1],
    )
    chex.assert_trees_all_equal(nnx.state(model.gate), nnx.state(trained.gate))


def test_noise_tells_the_copies_apart():
    trained, model = random_model(TRAINED, seed=1), random_model(SPARSE, seed=2)
    initialise_from(model, trained, noise=0.1, key=KEY)
    dense = trained.decoder.stack.blocks[1].feed_forward.wi.kernel[...]
    copies = model.decoder.stack.blocks[1].feed_forward.wi.kernel[...]
    spread = jnp.std(copies - dense, axis=(1, 2)) / jnp.std(dense)
    chex.assert_trees_all_close(spread, jnp.full(3, 0.1), rtol=0.2)
    assert jnp.min(jnp.std(copies, axis=0)) > 0
    # Nothing but the copies has noise.
    chex.assert_trees_all_equal(
        nnx.state(model.decoder.stack.blocks[0]), nnx.state(trained.decoder.stack.blocks[0])
    )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (TRAINED, dataclasses.replace(TRAINED, question_start=True), r"no parameter start/kernel:"),
        (
            dataclasses.replace(TRAINED, share_embeddings="all"),
            TRAINED,
            r"no parameter question_embedding/table: .* make the settings under model equal",
        ),
        (
            TRAINED,
            with_(TRAINED, d_ff=32),
            r"context_encoder/stack/0/feed_forward/wi/kernel in shape \(16, 24\), this model needs "
            r"\(16, 32\)",
        ),
        (
            TRAINED,
            with_(SPARSE, vocab_size=60),
            r"decoder_embedding/table in shape \(50, 16\), this model needs \(60, 16\)",
        ),
        (
            SPARSE,
            dataclasses.replace(SPARSE, moe=MoEConfig(num_experts=4)),
            r"decoder/stack/1/feed_forward/router/kernel in shape \(16, 3\), .* needs \(16, 4\)",
        ),
        (
            SPARSE,
            TRAINED,
            r"decoder/stack/1/feed_forward/wi/kernel in shape \(3, 16, 24\), .* needs \(16, 24\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(before, after, message):
    with pytest.raises(UserError, match=message) as error:
        initialise_from(random_model(after), random_model(before), noise=0.0, key=KEY)
    assert "\n" not in str(error.value)
