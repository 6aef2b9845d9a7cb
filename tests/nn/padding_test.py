import dataclasses

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn.attention import distance_buckets
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.padding import padding_runs
from moemoe_jax.nn.t5 import T5Config, T5Encoder
from tests.models.tiny import QUICK
from tests.nn.torch_swinv2 import by_name

T5 = (32, 128)  # buckets and largest distance of every published T5


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 1), (1, 40), (2, 9), (8, 9), (8, 200), (16, 64), (40, 40), (40, 200)]
)
@pytest.mark.parametrize(("buckets", "most"), [T5, (8, 20), (32, 17)])
def test_positions_share_a_row_exactly_where_all_their_buckets_are_equal(
    tokens, length, buckets, most
):
    runs = padding_runs(tokens, length, buckets, most)
    bucket = distance_buckets(buckets // 2, most)

    def seen(position):
        return tuple(int(bucket[min(position - j, most)]) for j in range(tokens))

    row = np.repeat(np.arange(len(runs)), runs)
    assert len(row) == length and (row[:tokens] == np.arange(tokens)).all()
    for position in range(tokens + 1, length):
        shares = row[position] == row[position - 1]
        assert shares == (seen(position) == seen(position - 1))


def test_a_long_context_costs_no_more_rows_than_a_short_one():
    assert len(padding_runs(8, 128, *T5)) == 63
    assert padding_runs(8, 512, *T5)[:-1] == padding_runs(8, 128, *T5)[:-1]


SMALL = T5Config(
    vocab_size=20,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_heads=2,
    num_layers=2,
    dropout=0.0,
    relative_buckets=8,
    relative_max_distance=12,
)
TOKENS, LENGTH = 4, 24


@pytest.mark.parametrize(
    ("config", "moe"),
    [
        (SMALL, {}),
        (dataclasses.replace(SMALL, per_layer_bias=True, scan_layers=True), {}),
        (
            dataclasses.replace(SMALL, activation="gated-gelu", remat="full"),
            {"moe": MoEConfig(num_experts=3, top_k=1, router_std=1.0), "moe_layers": (1,)},
        ),
    ],
    ids=["bias of a stack", "bias of a layer, scanned", "mixture"],
)
def test_a_row_for_each_run_is_the_same_encoding(config, moe):
    encoder = T5Encoder(config, **moe, rngs=nnx.Rngs(0))
    graph, params = nnx.split(encoder)
    # Biases as large as the scores, or positions would hardly matter.
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.shape == (8, 2) else leaf, params)
    rng = np.random.default_rng(0)
    valid = np.arange(TOKENS) < np.array([[4], [2], [1], [0]])
    embedded = rng.normal(size=(4, TOKENS, 8)).astype(np.float32)
    nothing = rng.normal(size=8).astype(np.float32)  # what padding is embedded as
    embedded = np.where(valid[..., None], embedded, nothing)
    readout = rng.normal(size=(4, LENGTH, 8)).astype(np.float32)
    runs = padding_runs(TOKENS, LENGTH, config.relative_buckets, config.relative_max_distance)
    assert TOKENS < len(runs) < LENGTH

    def loss(params, nothing, rows, real, runs):
        fill = jnp.broadcast_to(nothing, (4, rows - TOKENS, 8))
        model = nnx.merge(graph, params)
        hidden, stats = model(jnp.concatenate([embedded, fill], axis=1), real, runs=runs)
        if runs is not None:
            hidden = jnp.repeat(hidden, np.array(runs), axis=1)
        return jnp.sum(jnp.square(hidden) * readout), (hidden, stats)

    def outcome(*shape):
        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        with jax.default_matmul_precision("highest"):
            (_, found), (gradient, padding) = jax.jit(
                lambda p, n: run(p, n, *shape), compiler_options=QUICK
            )(params, nothing)
        return found, by_name(gradient), padding

    whole = np.pad(valid, ((0, 0), (0, LENGTH - TOKENS)))
    chex.assert_trees_all_close(
        outcome(len(runs), valid, runs), outcome(LENGTH, whole, None), atol=1e-5, rtol=1e-5
    )
