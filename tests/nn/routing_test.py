import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import routing
from moemoe_jax.nn.routing import Routing, load_balancing_loss, route

EYE = jnp.eye(3)


def routing_of(logits, k=1, gate="softmax_topk"):
    """The routing that these logits [T, E] lead to."""
    logits = jnp.asarray(logits, jnp.float32)
    return route(logits, jnp.eye(logits.shape[-1]), k, gate=gate)


@pytest.mark.parametrize(
    ("gate", "expected"),
    # exp(logits) = 1, 3, 4. Over the top two, 4 : 3 = 4/7 : 3/7; over all, 4/8 and 3/8.
    [("topk_softmax", [4 / 7, 3 / 7]), ("softmax_topk", [0.5, 0.375])],
)
def test_gates_by_hand(gate, expected):
    routes = route(jnp.log(jnp.array([[1.0, 3.0, 4.0]])), EYE, 2, gate=gate)
    chex.assert_trees_all_equal(routes.experts, jnp.array([[2, 1]]))
    chex.assert_trees_all_close(routes.weights, jnp.array([expected]), atol=1e-6)
    chex.assert_trees_all_close(routes.probs, jnp.array([[0.125, 0.375, 0.5]]), atol=1e-6)


def test_every_gate_noise_and_aux_prob_is_exercised_here():
    assert set(routing.GATES) == {"topk_softmax", "softmax_topk"}
    assert set(routing.NOISES) == {"none", "gaussian", "learned", "jitter"}
    assert set(routing.AUX_PROBS) == {"full_softmax", "gate"}
    assert set(routing.LEVELS) == {"token", "sequence", "question"}


def test_routing_is_float32_whatever_the_input():
    x = jax.random.normal(jax.random.key(0), (5, 3), jnp.bfloat16)
    routes = route(x, EYE.astype(jnp.bfloat16), 2)
    chex.assert_type([routes.weights, routes.probs, routes.logits], jnp.float32)
    chex.assert_type(routes.experts, jnp.int32)


def test_top_1_agrees_with_the_switch_transformer_of_transformers():
    import torch
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    config = switch.SwitchTransformersConfig(
        hidden_size=6, d_model=6, num_experts=4, expert_capacity=64, router_jitter_noise=0.0
    )
    router = switch.SwitchTransformersTop1Router(config).eval()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, 4)).astype(np.float32)
    with torch.no_grad():
        router.classifier.weight.copy_(torch.from_numpy(kernel.T))
        outputs = [o.numpy() for o in router(torch.from_numpy(x))]
    ours = route(jnp.asarray(x[0]), jnp.asarray(kernel), 1, gate="softmax_topk")
    weights = next(o for o in outputs if o.shape in ((1, 8, 1), (8, 1)) and o.dtype == np.float32)
    chex.assert_trees_all_close(ours.weights, weights.reshape(8, 1), atol=1e-6)
    mask = next(o for o in outputs if o.shape[-1] == 4 and o.sum() == 8 and o.max() == 1)
    chex.assert_trees_all_equal(ours.experts[:, 0], mask.reshape(8, 4).argmax(-1).astype(np.int32))


def noisy_logits(noise, x, seed=0, **kwargs):
    return route(x, EYE, 1, noise=noise, key=jax.random.key(seed), **kwargs).logits


@pytest.mark.parametrize("noise", routing.NOISES)
def test_without_a_key_no_noise(noise):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    chex.assert_trees_all_equal(route(x, EYE, 1, noise=noise).logits, x)


def test_no_noise_is_none_even_with_a_key():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    chex.assert_trees_all_equal(noisy_logits("none", x), x)


def test_gaussian_noise_has_standard_deviation_one_over_the_number_of_experts():
    # The relative error of a standard deviation over n = 60 000 draws is 1 / sqrt(2 n) = 0.3 %.
    noise = noisy_logits("gaussian", jnp.zeros((20_000, 3)))
    assert abs(float(noise.std()) * 3 - 1) < 0.02
    assert abs(float(noise.mean())) < 0.01


def test_learned_noise_has_the_scale_softplus_of_its_kernel_and_trains_it():
    x = jnp.ones((20_000, 3))
    kernel = jnp.array([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    noise = noisy_logits("learned", x, noise_kernel=kernel) - x
    expected = jax.nn.softplus(kernel[0])  # 0.127, 0.693, 2.127
    chex.assert_trees_all_close(noise.std(axis=0), expected, rtol=0.03)
    gradient = jax.grad(
        lambda w: (
            route(x[:9], EYE, 2, noise="learned", noise_kernel=w, key=jax.random.key(1))
            .weights[:, 0]
            .sum()
        )
    )(kernel)
    assert float(jnp.abs(gradient).max()) > 0


def test_jitter_multiplies_the_input_by_1_percent():
    x = jnp.array([[1.0, -2.0, 100.0]])
    ratio = jnp.concatenate([noisy_logits("jitter", x, seed) / x for seed in range(50)])
    assert float(ratio.min()) >= 0.99
    assert float(ratio.max()) <= 1.01
    assert float(ratio.std()) > 0.004  # uniform over 0.02: 0.02 / sqrt(12) = 0.0058


def test_different_keys_make_different_noise():
    x = jnp.zeros((2, 3))
    chex.assert_trees_all_equal(noisy_logits("gaussian", x, 1), noisy_logits("gaussian", x, 1))
    assert not jnp.array_equal(noisy_logits("gaussian", x, 1), noisy_logits("gaussian", x, 2))


def test_aux_by_hand():
    # Two experts; probabilities (3/4, 1/4), (3/4, 1/4), (1/4, 3/4), and padding that says (0, 1).
    # f = (2/3, 1/3), P = (7/12, 5/12): 2 (14/36 + 5/36) = 38/36.
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0], [1e-9, 1.0]]))
    valid = jnp.array([True, True, True, False])
    aux = load_balancing_loss(routing_of(logits), valid)
    chex.assert_trees_all_close(aux, jnp.float32(38 / 36), atol=1e-6)
    # The sparse weights instead: P = (3/4 + 3/4, 3/4) / 3 = (1/2, 1/4): 2 (1/3 + 1/12) = 10/12.
    aux = load_balancing_loss(routing_of(logits), valid, "gate")
    chex.assert_trees_all_close(aux, jnp.float32(10 / 12), atol=1e-6)


@pytest.mark.parametrize("aux_prob", routing.AUX_PROBS)
def test_aux_is_1_at_uniform_and_the_number_of_experts_at_collapse(aux_prob):
    valid = jnp.ones(4, bool)
    collapsed = routing_of(jnp.tile(jnp.array([99.0, 0.0, 0.0, 0.0]), (4, 1)))
    chex.assert_trees_all_close(load_balancing_loss(collapsed, valid, aux_prob), 4.0, atol=1e-5)
    # Each expert is the first choice of one token, with probability 1 up to exp(-99).
    balanced = routing_of(99.0 * jnp.eye(4))
    chex.assert_trees_all_close(load_balancing_loss(balanced, valid, aux_prob), 1.0, atol=1e-5)
    # Equal probabilities give 1 whoever comes first.
    flat = Routing(
        experts=jnp.zeros((4, 1), jnp.int32),
        weights=jnp.ones((4, 1)),
        probs=jnp.full((4, 4), 0.25),
        logits=jnp.zeros((4, 4)),
    )
    chex.assert_trees_all_close(load_balancing_loss(flat, valid), 1.0, atol=1e-6)


def test_aux_may_fall_below_1():
    # 51 % of the tokens say (.51, .49) and 49 % say (.01, .99): 0.9906, as P disagrees with f.
    probs = jnp.array([[0.51, 0.49]] * 51 + [[0.01, 0.99]] * 49)
    aux = load_balancing_loss(routing_of(jnp.log(probs)), jnp.ones(100, bool))
    chex.assert_trees_all_close(aux, jnp.float32(0.9906), atol=1e-4)


def test_aux_moves_the_router():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    gradient = jax.grad(lambda kernel: load_balancing_loss(route(x, kernel, 2), jnp.ones(7, bool)))(
        jax.random.normal(jax.random.key(1), (3, 4))
    )
    assert float(jnp.abs(gradient).max()) > 1e-3


def test_the_other_statistics_by_hand():
    routes = routing_of(jnp.log(jnp.array([[1.0, 1.0, 2.0], [9.0, 9.0, 9.0]])), k=2)
    valid = jnp.array([True, False])
    # logsumexp of ln(1, 1, 2) is ln 4; entropy 2/4 ln 4 + 1/2 ln 2 = 1.5 ln 2.
    chex.assert_trees_all_close(routing.z_loss(routes, valid), jnp.log(4.0) ** 2, atol=1e-6)
    chex.assert_trees_all_close(routing.entropy(routes, valid), 1.5 * jnp.log(2.0), atol=1e-6)
    # Two choices, of experts 2 and (first of equals) 0.
    chex.assert_trees_all_close(routing.expert_load(routes, valid), jnp.array([0.5, 0.0, 0.5]))


def test_levels_by_hand():
    x = jnp.array([[[1.0], [3.0], [100.0]], [[2.0], [100.0], [100.0]]])
    valid = jnp.array([[True, True, False], [False, False, False]])
    chex.assert_trees_all_equal(routing.LEVELS["token"](x, valid, None), x)
    # (1 + 3) / 2, and zero for a row of padding.
    mean = routing.LEVELS["sequence"](x, valid, None)
    chex.assert_trees_all_equal(mean, jnp.array([[[2.0]], [[0.0]]]))
    question = jnp.array([[7.0], [8.0]])
    chex.assert_trees_all_equal(
        routing.LEVELS["question"](x, valid, question), question[:, None, :]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: routing_of([[1.0, 2.0]], gate="best"),
            "unknown gate 'best': use one of topk_softmax, softmax_topk",
        ),
        (
            lambda: noisy_logits("pink", jnp.ones((1, 3))),
            "unknown router noise 'pink': use one of none, gaussian, learned, jitter",
        ),
        (
            lambda: load_balancing_loss(routing_of([[1.0]]), jnp.ones(1, bool), "half"),
            "unknown aux_prob 'half': use one of full_softmax, gate",
        ),
        (
            lambda: routing.LEVELS["question"](jnp.ones((1, 1, 1)), jnp.ones((1, 1), bool), None),
            "needs the pooled question vector",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
