import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.nn.moe import MoEConfig, MoEFeedForward
from moemoe_jax.nn.params import ExpertParam, RouterParam

D, F = 6, 10


def make(config=None, activation="relu", **kwargs):
    """A layer as (function of (params, x, valid, ...), params)."""
    config = config or MoEConfig(router_std=1.0)
    layer = MoEFeedForward(config, D, F, activation, **kwargs, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)
    return lambda params, *args, **kw: nnx.merge(graph, params)(*args, **kw), params


def batch(rows=3, length=5):
    """[B, L, D], and lengths 5, 4, 3, ... as a mask."""
    x = jax.random.normal(jax.random.key(1), (rows, length, D))
    return x, jnp.arange(length) < length - jnp.arange(rows)[:, None]


def value_and_grad(apply, params, *args, **kwargs):
    def loss(params, *args):
        y, stats = apply(params, *args, **kwargs)
        return jnp.sum(jnp.sin(y)) + stats.aux_loss + 0.1 * stats.z_loss, (y, stats)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, *args)


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_one_token_by_hand(activation):
    apply, params = make(MoEConfig(num_experts=3, top_k=2, router_std=1.0), activation)
    x = jax.random.normal(jax.random.key(2), (1, D))
    y, stats = apply(params, x, jnp.ones(1, bool))
    logits = x[0] @ params.router.kernel[...]
    first, second = (int(e) for e in jnp.argsort(-logits)[:2])
    weights = jax.nn.softmax(logits[jnp.array([first, second])])

    def expert(e):
        if activation == "relu":
            hidden = jax.nn.relu(x[0] @ params.wi.kernel[e])
        else:
            gate = jax.nn.gelu(x[0] @ params.wi_0.kernel[e], approximate=True)
            hidden = gate * (x[0] @ params.wi_1.kernel[e])
        return hidden @ params.wo.kernel[e]

    chex.assert_trees_all_close(
        y[0], weights[0] * expert(first) + weights[1] * expert(second), atol=1e-5
    )
    probs = jax.nn.softmax(logits)
    chex.assert_trees_all_close(stats.load[jnp.array([first, second])], jnp.full(2, 0.5))
    # One token: f is one-hot, so that L_aux = 3 P_first.
    chex.assert_trees_all_close(stats.aux_loss, 3 * probs[first], atol=1e-5)
    assert stats.dropped == 0.0


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_parameters_have_types_and_logical_axes(activation):
    layer = MoEFeedForward(MoEConfig(noise="learned"), D, F, activation, rngs=nnx.Rngs(0))
    state = nnx.to_flat_state(nnx.state(layer))
    axes = {"/".join(path): (type(v), v.shape, v.logical_axes) for path, v in state}
    up = (ExpertParam, (4, D, F), ("expert", "embed", "mlp"))
    ups = {"wi/kernel": up} if activation == "relu" else {"wi_0/kernel": up, "wi_1/kernel": up}
    router = (RouterParam, (D, 4), ("embed", None))
    assert axes == {
        **ups,
        "wo/kernel": (ExpertParam, (4, F, D), ("expert", "mlp", "embed")),
        "router/kernel": router,
        "router/noise_kernel": router,
    }
    assert all(float(jnp.abs(v[...]).min()) > 0 for _, v in state)


@pytest.mark.parametrize("level", ["token", "sequence", "question"])
def test_padding_changes_neither_value_nor_gradient(level):
    apply, params = make(MoEConfig(routing_level=level, router_std=1.0))
    x, _ = batch(3, 5)
    question = jax.random.normal(jax.random.key(3), (3, D))
    short, (gp, gx) = value_and_grad(apply, params, x, jnp.ones((3, 5), bool), question=question)
    padded = jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    valid = jnp.broadcast_to(jnp.arange(8) < 5, (3, 8))
    long, (lp, lx) = value_and_grad(apply, params, padded, valid, question=question)
    chex.assert_trees_all_close(short[1][1], long[1][1], atol=1e-6)  # all of MoEStats
    chex.assert_trees_all_close(short[1][0], long[1][0][:, :5], atol=1e-6)
    chex.assert_trees_all_close((gp, gx), (lp, lx[:, :5]), atol=1e-5)
    chex.assert_trees_all_equal(lx[:, 5:], jnp.zeros((3, 3, D)))


@pytest.mark.parametrize("level", ["token", "sequence", "question"])
@pytest.mark.parametrize("aux_prob", ["full_softmax", "gate"])
def test_nothing_but_padding_is_finite(level, aux_prob):
    apply, params = make(MoEConfig(routing_level=level, aux_prob=aux_prob))
    x, _ = batch()
    (_, (y, stats)), gradients = value_and_grad(
        apply, params, x, jnp.zeros((3, 5), bool), question=x[:, 0]
    )
    zeros = jax.tree.map(jnp.zeros_like, (y, stats, gradients))
    chex.assert_trees_all_equal((y, stats, gradients), zeros)


@pytest.mark.parametrize("level", ["token", "question"])
@pytest.mark.parametrize("capacity_factor", [None, 0.6])
def test_later_tokens_change_nothing_earlier_in_their_row(level, capacity_factor):
    config = MoEConfig(routing_level=level, capacity_factor=capacity_factor, router_std=1.0)
    apply, params = make(config)
    x, question = batch(1, 9)[0], jnp.ones((1, D))
    valid = jnp.ones((1, 9), bool)
    before, _ = apply(params, x, valid, question=question)
    after, _ = apply(params, x.at[:, 5:].multiply(-2.0), valid, question=question)
    chex.assert_trees_all_close(before[:, :5], after[:, :5], atol=1e-6)


def test_rows_share_their_experts_at_row_level():
    x, valid = batch()
    question = jax.random.normal(jax.random.key(3), (3, D))
    for level, inputs in {
        "sequence": jnp.stack([row[mask].mean(axis=0) for row, mask in zip(x, valid, strict=True)]),
        "question": question,
    }.items():
        apply, params = make(MoEConfig(num_experts=4, top_k=1, routing_level=level, router_std=1.0))
        y, stats = apply(params, x, valid, question=question)
        chosen = jnp.argmax(inputs @ params.router.kernel[...], axis=-1)
        hidden = jax.nn.relu(jnp.einsum("bld,bdf->blf", x, params.wi.kernel[...][chosen]))
        expected = jnp.einsum("blf,bfd->bld", hidden, params.wo.kernel[...][chosen])
        chex.assert_trees_all_close(y, jnp.where(valid[..., None], expected, 0.0), atol=1e-5)
        # A row weighs as much as it has tokens: 5, 4 and 3 of 12.
        load = jnp.zeros(4).at[chosen].add(jnp.array([5, 4, 3]) / 12)
        chex.assert_trees_all_close(stats.load, load, atol=1e-6)


def test_any_number_of_leading_dimensions():
    apply, params = make(MoEConfig(routing_level="question", router_std=1.0))
    x, valid = batch(4, 5)
    question = jax.random.normal(jax.random.key(3), (4, D))
    y, stats = apply(params, x, valid, question=question)
    folded, folded_stats = apply(
        params, x.reshape(2, 2, 5, D), valid.reshape(2, 2, 5), question=question.reshape(2, 2, D)
    )
    chex.assert_trees_all_close((folded.reshape(4, 5, D), folded_stats), (y, stats), atol=1e-6)


@pytest.mark.parametrize("noise", ["none", "gaussian", "learned", "jitter"])
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax_topk"])
def test_noise_needs_a_key(noise, gate):
    apply, params = make(MoEConfig(noise=noise, gate=gate, router_std=1.0))
    x, valid = batch()
    quiet = apply(params, x, valid)
    chex.assert_trees_all_equal(quiet, apply(params, x, valid))
    noisy = apply(params, x, valid, jax.random.key(5))
    chex.assert_trees_all_equal(noisy, apply(params, x, valid, jax.random.key(5)))
    assert (noise == "none") == bool(jnp.allclose(noisy[0], quiet[0], atol=1e-7))


def test_dropout_acts_on_the_hidden_channels_with_a_key_only():
    apply, params = make(MoEConfig(num_experts=1, top_k=1), dropout=0.5)
    x, valid = jnp.ones((1, 2000, D)), jnp.ones((1, 2000), bool)
    quiet, noisy = apply(params, x, valid)[0], apply(params, x, valid, jax.random.key(0))[0]
    assert float(jnp.abs(noisy - quiet).max()) > 0.1
    # Unbiased, and all tokens are equal: their mean is the value without dropout.
    chex.assert_trees_all_close(noisy.mean(axis=1), quiet[:, 0], atol=0.1)


@pytest.mark.parametrize("back_end", ["index", "dense", "ragged", "grouped"])
def test_bfloat16_computes_in_bfloat16_and_routes_in_float32(back_end):
    config = MoEConfig(router_std=1.0, dispatch=back_end)
    x, valid = batch()
    apply, params = make(config, "gated-gelu", dtype="bfloat16")
    (_, (y, stats)), (gradients, _) = value_and_grad(apply, params, x, valid)
    chex.assert_type(y, jnp.bfloat16)
    chex.assert_type(jax.tree.leaves((stats, gradients)), jnp.float32)
    exact, exact_stats = make(config, "gated-gelu")[0](params, x, valid)
    chex.assert_trees_all_close(y.astype(jnp.float32), exact, atol=0.15, rtol=0.05)
    chex.assert_trees_all_close(stats, exact_stats, atol=1e-6)


def test_losses_reach_the_router():
    apply, params = make(MoEConfig(router_std=1.0))
    x, valid = batch()
    for pick in (
        lambda y, stats: jnp.sum(jnp.sin(y)),
        lambda y, stats: stats.aux_loss,
        lambda y, stats: stats.z_loss,
    ):
        gradient = jax.grad(lambda p, pick=pick: pick(*apply(p, x, valid)))(params)
        assert float(jnp.abs(gradient.router.kernel[...]).max()) > 1e-4


def test_what_is_dropped_out_depends_on_no_back_end():
    x, valid = batch()
    outputs = []
    for back_end in ("dense", "index", "ragged", "grouped"):
        config = MoEConfig(dispatch=back_end, router_std=1.0)
        apply, params = make(config, "gated-gelu", dropout=0.5)
        outputs.append(value_and_grad(apply, params, x, valid, key=jax.random.key(0)))
    for output in outputs[1:]:
        chex.assert_trees_all_close(output, outputs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, r"top_k 5 is not in 1..num_experts \(4\)"),
        ({"top_k": 0}, "top_k 0 is not in"),
        ({"gate": "x"}, "unknown gate 'x': use one of topk_softmax, softmax_topk"),
        ({"noise": "x"}, "unknown router noise 'x': use one of none, gaussian, learned, jitter"),
        ({"aux_prob": "x"}, "unknown aux_prob 'x': use one of full_softmax, gate"),
        ({"routing_level": "x"}, "unknown routing level 'x': use one of token, sequence, question"),
        ({"dispatch": "x"}, "unknown dispatch back end 'x': use one of auto, index, dense, ragged"),
        ({"capacity_factor": 0.0}, "capacity_factor 0.0 is not positive: None means dropless"),
        ({"router_std": 0.0}, "router_std 0.0 is not positive"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MoEConfig(**options)
    assert "\n" not in str(error.value)


def test_a_layer_refuses_an_unknown_activation_and_a_missing_question():
    with pytest.raises(ValueError, match="activation 'tanh' is none of relu, gated-gelu"):
        make(activation="tanh")
    apply, params = make(MoEConfig(routing_level="question"))
    with pytest.raises(ValueError, match="needs the pooled question vector"):
        apply(params, *batch())
