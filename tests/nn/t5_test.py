import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.params import ExpertParam
from moemoe_jax.nn.rows import join
from moemoe_jax.nn.t5 import T5Config, T5Decoder, T5Encoder
from tests.nn.torch_t5 import FLAVOURS, TINY, ToyT5, from_torch, ids, pair, torch_model

IDS = ids((3, 7), lengths=(7, 4, 2))
LABELS = ids((3, 5), lengths=(5, 3, 4), seed=1)


def tensor(array):
    return torch.tensor(np.array(array), dtype=torch.long)


@pytest.fixture(scope="module", params=FLAVOURS)
def models(request):
    return pair(FLAVOURS[request.param])


def test_encoder_and_logits_equal_pytorch(models):
    theirs, ours = models
    mask = tensor(IDS != 0)
    decoder_ids = np.pad(LABELS, ((0, 0), (1, 0)))[:, :-1]
    graph, state = nnx.split(ours)
    encode = jax.jit(lambda state: nnx.merge(graph, state).encode(IDS))
    forward = jax.jit(lambda state: nnx.merge(graph, state)(IDS, decoder_ids))
    with torch.no_grad():
        hidden = theirs.encoder(tensor(IDS), attention_mask=mask).last_hidden_state.numpy()
        scores = theirs(tensor(IDS), attention_mask=mask, decoder_input_ids=tensor(decoder_ids))
    real = IDS != 0
    chex.assert_trees_all_close(np.array(encode(state))[real], hidden[real], atol=1e-5)
    chex.assert_trees_all_close(
        np.array(forward(state)), scores.logits.numpy(), atol=1e-4, rtol=1e-5
    )


def test_the_loss_and_the_gradient_of_every_weight_equal_pytorch(models):
    theirs, ours = models
    labels = tensor(np.where(LABELS == 0, -100, LABELS))
    theirs.zero_grad()
    expected = theirs(tensor(IDS), attention_mask=tensor(IDS != 0), labels=labels).loss
    expected.backward()
    graph, state = nnx.split(ours)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda state: nnx.merge(graph, state).loss(IDS, LABELS))
    )(state)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    chex.assert_trees_all_close(loss, expected.item(), rtol=1e-5)
    assert len(gradients) == len(jax.tree.leaves(gradient))
    chex.assert_trees_all_close(gradient, from_torch(gradient, gradients), atol=2e-5, rtol=1e-4)


def greedy(model, ids, steps):
    """Greedy ids [B, steps] with the cache, in one `fori_loop`; padding after </s>."""
    memory = model.decoder.project(join([model.encode(ids)], ["pad"]))
    read = (memory, None, (ids != 0)[:, None])
    rows = ids.shape[0]

    def body(position, carry):
        last, done, cache, out = carry
        hidden, cache = model.decoder.step(model.embed(last), position, cache, *read)
        token = jnp.where(done, 0, jnp.argmax(model.logits(hidden), -1).astype(jnp.int32))
        return token, done | (token == 1), cache, out.at[:, position].set(token[:, 0, 0])

    start = jnp.zeros((rows, 1, 1), jnp.int32)
    cache = model.decoder.init_cache(rows, 1, steps)
    carry = (start, start > 0, cache, jnp.zeros((rows, steps), jnp.int32))
    return jax.lax.fori_loop(0, steps, body, carry)[-1]


def test_greedy_ids_equal_pytorch(models):
    theirs, ours = models
    graph, state = nnx.split(ours)
    with torch.no_grad():
        expected = theirs.generate(
            tensor(IDS),
            attention_mask=tensor(IDS != 0),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=1,
        )[:, 1:].numpy()
    expected = np.pad(expected, ((0, 0), (0, 16 - expected.shape[1])))
    got = jax.jit(lambda state: greedy(nnx.merge(graph, state), IDS, 16))(state)
    assert len(np.unique(expected)) > 2
    chex.assert_trees_all_equal(np.array(got), expected)


def test_new_weights_are_spread_as_pytorch_spreads_them():
    config = dataclasses.replace(FLAVOURS["flan"], d_model=64, d_kv=24, relative_buckets=64)
    ours = nnx.state(ToyT5(config))
    theirs = from_torch(ours, dict(torch_model(config, noise=0.0).named_parameters()))
    # The relative bias keeps 32 buckets there, enough for its standard deviation.
    spread = lambda state: jax.tree.map(jnp.std, state)  # noqa: E731
    chex.assert_trees_all_close(spread(ours), spread(theirs), rtol=0.2)


def problem(config=TINY, seed=0, **mixture):
    """A decoder and what it reads: 2 products x 3 questions, sources of 4 tokens, answers of 5."""
    keys = jax.random.split(jax.random.key(seed), 5)
    decoder = T5Decoder(config, **mixture, rngs=nnx.Rngs(seed))
    inputs = {
        "embedded": jax.random.normal(keys[0], (2, 3, 5, config.d_model)),
        "valid": jnp.arange(5) < jnp.array([[5, 3, 4], [1, 5, 2]])[..., None],
        "sources": [
            jax.random.normal(keys[i], (2, n, config.d_model)) for i, n in ((1, 4), (4, 2))
        ],
        "weights": jax.random.uniform(keys[2], (2, 3, 2, 4)),
        "memory_valid": jnp.arange(4) < jnp.array([[4, 3, 2], [1, 4, 4]])[..., None],
        "question": jax.random.normal(keys[3], (2, 3, config.d_model)),
    }
    return decoder, inputs


@functools.partial(jax.jit, static_argnums=0)
def jitted_decode(graph, state, inputs, key):
    decoder = nnx.merge(graph, state)
    memory = decoder.project(join(inputs["sources"], ["pad", "tile"]))
    read = (memory, inputs["weights"], inputs["memory_valid"])
    return decoder(inputs["embedded"], inputs["valid"], *read, key, inputs["question"])


def decode(decoder, inputs, key=None):
    graph, state = nnx.split(decoder)
    return jitted_decode(graph, state, inputs, key)


@pytest.mark.parametrize("scan", [False, True])
def test_cached_steps_equal_the_full_forward(scan):
    decoder, inputs = problem(dataclasses.replace(TINY, scan_layers=scan))
    inputs["valid"] = jnp.ones_like(inputs["valid"])
    full, _ = decode(decoder, inputs)
    memory = decoder.project(join(inputs["sources"], ["pad", "tile"]))
    graph, state = nnx.split(decoder)

    @jax.jit
    def step(state, x, position, cache):
        read = (memory, inputs["weights"], inputs["memory_valid"])
        return nnx.merge(graph, state).step(x, position, cache, *read)

    cache, hidden = decoder.init_cache(2, 3, max_length=8), []
    for position in range(5):
        x = inputs["embedded"][:, :, position : position + 1]
        y, cache = step(state, x, jnp.int32(position), cache)
        hidden.append(y)
    chex.assert_trees_all_close(jnp.concatenate(hidden, 2), full, atol=1e-5)


def test_padding_changes_neither_value_nor_gradient_of_the_encoder():
    encoder = T5Encoder(TINY, rngs=nnx.Rngs(0))
    graph, state = nnx.split(encoder)
    x = jax.random.normal(jax.random.key(1), (2, 4, 32))

    def loss(state, x, valid):
        hidden = nnx.merge(graph, state)(x, valid)[0]
        return jnp.sum(jnp.sin(hidden) * valid[..., None])

    gradient = jax.jit(jax.value_and_grad(loss))
    short = gradient(state, x, jnp.ones((2, 4), bool))
    padded = jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    long = gradient(state, padded, jnp.arange(7) < jnp.full((2, 1), 4))
    chex.assert_trees_all_close(short, long, atol=2e-5, rtol=1e-5)


def test_padding_changes_neither_value_nor_gradient_of_the_decoder():
    decoder, inputs = problem()
    graph, state = nnx.split(decoder)

    def loss(state, inputs):
        hidden, _ = decode(nnx.merge(graph, state), inputs)
        return jnp.sum(jnp.sin(hidden) * inputs["valid"][..., None])

    def pad(x, axis, value):
        width = [(0, 2) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)]
        return jnp.pad(x, width, constant_values=value)

    padded = {
        "embedded": pad(inputs["embedded"], -2, 3.0),
        "valid": pad(inputs["valid"], -1, False),
        "sources": [pad(inputs["sources"][0], -2, 3.0), inputs["sources"][1]],  # a tile more
        "weights": pad(inputs["weights"], -1, 0.7),
        "memory_valid": pad(inputs["memory_valid"], -1, False),
        "question": inputs["question"],
    }
    gradient = jax.jit(jax.value_and_grad(loss))
    short, long = (gradient(state, x) for x in (inputs, padded))
    chex.assert_trees_all_close(short, long, atol=2e-5, rtol=1e-5)


def test_a_question_of_padding_has_finite_values_and_gradients():
    decoder, inputs = problem()
    graph, state = nnx.split(decoder)
    inputs["valid"] = inputs["valid"].at[0, 1].set(False)
    inputs["memory_valid"] = inputs["memory_valid"].at[0, 1].set(False)
    loss = lambda s: jnp.sum(decode(nnx.merge(graph, s), inputs)[0])  # noqa: E731
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(state))


def test_a_later_token_changes_no_earlier_one():
    decoder, inputs = problem()
    inputs["valid"] = jnp.ones_like(inputs["valid"])
    before, _ = decode(decoder, inputs)
    inputs["embedded"] = inputs["embedded"].at[:, :, 3].set(9.0)
    after, _ = decode(decoder, inputs)
    chex.assert_trees_all_equal(before[:, :, :3], after[:, :, :3])
    assert jnp.all(jnp.any(before[:, :, 3:] != after[:, :, 3:], -1))


@pytest.mark.parametrize("level", ["token", "question"])
def test_mixtures_return_their_statistics_by_layer_scanned_or_not(level):
    config = dataclasses.replace(TINY, num_decoder_layers=4)
    mixture = {"moe": MoEConfig(num_experts=3, routing_level=level), "moe_layers": (1, 3)}
    results = []
    for scan in (False, True):
        decoder, inputs = problem(dataclasses.replace(config, scan_layers=scan), **mixture)
        assert len(decoder.stack.blocks) == (2 if scan else 4)
        hidden, stats = decode(decoder, inputs)
        assert set(stats) == {1, 3}
        assert stats[1].load.shape == (3,)
        experts = nnx.state(decoder.stack.blocks[1], ExpertParam)["feed_forward"]["wi"]["kernel"]
        assert experts.logical_axes == (("layers",) if scan else ()) + ("expert", "embed", "mlp")
        results.append((hidden[inputs["valid"]], stats))
    chex.assert_trees_all_close(*results, atol=1e-5)


def test_bfloat16_is_kept_and_parameters_stay_float32():
    decoder, inputs = problem(dataclasses.replace(TINY, dtype="bfloat16"))
    hidden, _ = decode(decoder, inputs)
    memory = decoder.project(join(inputs["sources"], ["pad", "tile"]))
    assert {x.dtype for x in jax.tree.leaves((hidden, memory))} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(nnx.state(decoder))} == {jnp.dtype("float32")}
    exact, _ = decode(problem()[0], inputs)
    chex.assert_trees_all_close(hidden.astype("float32"), exact, atol=0.2)


def test_a_key_turns_dropout_on_and_only_a_key():
    decoder, inputs = problem(dataclasses.replace(TINY, dropout=0.3))
    plain, _ = decode(problem()[0], inputs)
    chex.assert_trees_all_equal(decode(decoder, inputs)[0], plain)
    first, again, other = (decode(decoder, inputs, jax.random.key(i))[0] for i in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert not jnp.allclose(first, other)
    # The last dropout acts on the output itself: 30 % of it is zero.
    assert abs(float(jnp.mean(first == 0)) - 0.3) < 0.06


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 0),
        ("num_decoder_layers", -1),
        ("activation", "gelu"),
        ("dropout", 1.0),
        ("epsilon", 0.0),
        ("relative_buckets", 30),
        ("relative_max_distance", 16),
        ("dtype", "float16"),
        ("remat", "some"),
    ],
)
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} is .*{value}"):
        T5Config(**{field: value})


@pytest.mark.parametrize(
    ("moe_layers", "message"),
    [((1, 5), r"\[5\] are no layers of a stack of 2"), ((1,), r"\[1\] need a mixture")],
)
def test_impossible_mixture_layers_are_refused(moe_layers, message):
    with pytest.raises(ValueError, match=message):
        T5Encoder(TINY, moe_layers=moe_layers, rngs=nnx.Rngs(0))
