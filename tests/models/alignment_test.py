import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models import alignment
from moemoe_jax.models.alignment import Alignment, AlignmentConfig, pair_cosines
from moemoe_jax.models.encoded import Encoded

# P = 3 products x Q = 2 questions, U = 4 distinct ones, S = 2 sources, K = 5 tokens, D = 6.
INDEX = jnp.array([[0, 1], [2, 0], [3, 1]])
ASKED = jnp.array([[True, True], [True, True], [True, False]])
PRESENT = jnp.array([[True, True], [True, False], [True, True]])


def encoded(seed, lengths):
    tokens = jax.random.normal(jax.random.key(seed), (len(lengths), 5, 6))
    return Encoded(tokens, jnp.arange(5) < jnp.array(lengths)[:, None])


QUESTIONS = encoded(0, (2, 3, 5, 4))
SOURCES = (encoded(1, (5, 5, 5)), encoded(2, (4, 2, 5)))


def layer(config=None):
    return Alignment(config or AlignmentConfig(), 2, 6, rngs=nnx.Rngs(0))


def run(model, present=PRESENT, sources=SOURCES, asked=ASKED):
    return model(QUESTIONS, INDEX, asked, sources, present)


def test_cosines_by_hand():
    question = jnp.array([[3.0, 4.0, 9.0], [1.0, 0.0, 9.0]])
    question_valid = jnp.array([[True, True, False], [True, False, False]])
    source = jnp.array([[4.0, 3.0, 5.0], [7.0, 1.0, 2.0]])
    source_valid = jnp.array([[True, True, True], [False, True, True]])
    # The first two tokens are common: (3, 4)·(4, 3) / (5 · 5) = 24 / 25. Then (1)·(4) / 4 = 1.
    # The second product shares token 1 with question 0: 4 · 1 / 4 = 1; with question 1, none.
    products = source, source_valid
    cosines = pair_cosines((question, question_valid), products)
    chex.assert_trees_all_close(cosines, jnp.array([[0.96, 1.0], [1.0, 0.0]]), atol=1e-6)
    # The first product is asked question 1 alone, the second question 0 and again 0.
    mine = tuple(x[jnp.array([[1, 1], [0, 0]])] for x in (question, question_valid))
    asked = pair_cosines(mine, products, "pqn,pn->pq")
    chex.assert_trees_all_close(asked, jnp.ones((2, 2)), atol=1e-6)


def test_no_common_token_and_a_vector_of_zeros_have_finite_gradients():
    valid = jnp.array([[True, False]])
    for source, source_valid in ((jnp.ones((1, 2)), ~valid), (jnp.zeros((1, 2)), valid)):
        gradients = jax.grad(
            lambda q, s, v=source_valid: jnp.sum(pair_cosines((q, valid), (s, v))), argnums=(0, 1)
        )(jnp.ones((1, 2)), source)
        chex.assert_trees_all_equal(gradients, (jnp.zeros((1, 2)),) * 2)


def cosine(a, b):
    return np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


def vectors(model, config, which, part):
    """The vectors of one part and which of their entries count, one row after the other."""
    rows = []
    for tokens, valid in zip(np.asarray(part.rows), np.asarray(part.valid), strict=True):
        real = valid if config.mask_padding else np.ones_like(valid)
        if config.reduce == "mean_pool":
            rows.append((tokens[real].mean(axis=0), np.ones(6, bool)))
        else:
            kernel = model.reduce[0 if config.share_projection else which].score.kernel[...]
            rows.append((tokens @ np.asarray(kernel)[:, 0], real))
    return rows


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("reduce", alignment.REDUCTIONS)
def test_the_cosine_loss_equals_loops(reduce, share, mask_padding):
    config = AlignmentConfig(reduce=reduce, share_projection=share, mask_padding=mask_padding)
    model = layer(config)
    losses, _ = run(model)
    questions = vectors(model, config, 0, QUESTIONS)
    for s, source in enumerate(SOURCES):
        products = vectors(model, config, s + 1, source)
        pairs = []
        for p, q in np.ndindex(3, 2):
            if ASKED[p, q] and PRESENT[p, s]:
                (a, a_valid), (b, b_valid) = questions[int(INDEX[p, q])], products[p]
                common = a_valid & b_valid
                pairs.append(abs(1 - cosine(a[common], b[common])))
        assert len(pairs) == (5, 3)[s]
        np.testing.assert_allclose(losses[s], np.mean(pairs), atol=1e-5)


def test_the_loss_is_no_constant_differs_between_sources_and_trains_every_projection():
    graph, params = nnx.split(layer())
    losses, spread = run(layer())
    # A projection with a bias, or vectors full of padding, would push every cosine towards 1.
    assert np.all(np.asarray(losses) > 0.1)
    assert abs(losses[0] - losses[1]) > 0.01
    assert np.all(np.asarray(spread) > 0.1)
    gradient = jax.grad(lambda p: jnp.sum(run(nnx.merge(graph, p))[0]))(params)
    leaves = jax.tree.leaves(gradient)
    assert [leaf.shape for leaf in leaves] == [(6, 1)] * 3  # a kernel each, and no bias
    assert all(jnp.max(jnp.abs(leaf)) > 1e-3 for leaf in leaves)


def test_one_projection_where_it_is_shared_and_none_for_the_mean():
    shared = nnx.state(layer(AlignmentConfig(share_projection=True)))
    assert [leaf.shape for leaf in jax.tree.leaves(shared)] == [(6, 1)]
    assert not jax.tree.leaves(nnx.state(layer(AlignmentConfig(reduce="mean_pool"))))


def test_infonce_by_loops():
    config = AlignmentConfig(loss="infonce", temperature=0.5)
    model = layer(config)
    losses, _ = run(model)
    questions = vectors(model, config, 0, QUESTIONS)
    for s, source in enumerate(SOURCES):
        products = vectors(model, config, s + 1, source)

        def score(p, u, products=products):
            (a, a_valid), (b, b_valid) = questions[u], products[p]
            return cosine(a[a_valid & b_valid], b[a_valid & b_valid]) / 0.5

        pairs = []
        for p, q in np.ndindex(3, 2):
            if not (ASKED[p, q] and PRESENT[p, s]):
                continue
            u = int(INDEX[p, q])
            asked_too = [int(i) for i in range(3) if np.any((INDEX[i] == u) & ASKED[i])]
            others = [i for i in range(3) if i not in asked_too and PRESENT[i, s]]
            total = np.exp(score(p, u)) + sum(np.exp(score(i, u)) for i in others)
            pairs.append(np.log(total) - score(p, u))
        np.testing.assert_allclose(losses[s], np.mean(pairs), atol=1e-5)


def test_infonce_of_a_question_that_all_are_asked_is_zero():
    everyone = jnp.zeros((3, 2), jnp.int32)
    losses, _ = layer(AlignmentConfig(loss="infonce"))(
        QUESTIONS, everyone, jnp.ones((3, 2), bool), SOURCES, PRESENT
    )
    chex.assert_trees_all_close(losses, jnp.zeros(2), atol=1e-6)


@pytest.mark.parametrize("loss", alignment.LOSSES)
def test_what_is_missing_counts_nowhere_and_nothing_at_all_is_zero(loss):
    graph, params = nnx.split(layer(AlignmentConfig(loss=loss)))

    def values(params, sources, present, asked=ASKED):
        return run(nnx.merge(graph, params), present, sources, asked)

    other = SOURCES[1].replace(rows=SOURCES[1].rows.at[1].set(7.0))  # product 1 lacks it
    chex.assert_trees_all_equal(
        values(params, SOURCES, PRESENT), values(params, (SOURCES[0], other), PRESENT)
    )

    def total(params, *what):
        losses, spread = values(params, SOURCES, *what)
        return jnp.sum(losses) + jnp.sum(spread)

    for nothing in ((jnp.zeros((3, 2), bool),), (PRESENT, jnp.zeros((3, 2), bool))):
        value, gradient = jax.value_and_grad(total)(params, *nothing)
        chex.assert_tree_all_finite((value, gradient))
        chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))
        chex.assert_trees_all_equal(values(params, SOURCES, *nothing)[0], jnp.zeros(2))


def test_the_variance_by_hand():
    table = jnp.array([[1.0, 0.0, 9.0], [3.0, 4.0, 7.0], [50.0, 50.0, 50.0]])
    rows = jnp.array([True, True, False])
    # Of the first two rows: variances 1, 4 and 1, their mean 2.
    found = alignment.variance((table, jnp.ones_like(table, bool)), rows)
    chex.assert_trees_all_close(found, jnp.float32(2.0))
    # The last entry is padding in row 1: by itself it varies by 0. Squares 1 + 1 + 4 + 4 + 0 of 5.
    valid = jnp.ones_like(table, bool).at[1, 2].set(False)
    chex.assert_trees_all_close(alignment.variance((table, valid), rows), jnp.float32(2.0))
    assert alignment.variance((table, valid), ~rows) == 0.0  # one row varies by nothing
    assert alignment.variance((table, valid), jnp.zeros(3, bool)) == 0.0


@pytest.mark.parametrize("mask_padding", [True, False])
def test_padding_of_the_table_of_questions_does_not_count_in_their_variance(mask_padding):
    model = layer(AlignmentConfig(mask_padding=mask_padding))
    questions = encoded(0, (2, 3, 5, 0))
    _, spread = model(questions, INDEX, ASKED.at[2, 0].set(False), SOURCES, PRESENT)
    values, valid = (np.asarray(x)[:3] for x in model.reduce[0](questions, mask_padding))
    columns = [values[valid[:, k], k] for k in range(5)]
    squares = sum(np.sum((column - column.mean()) ** 2) for column in columns)
    assert spread.shape == (3,)
    np.testing.assert_allclose(spread[0], squares / valid.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "max"}, "model.alignment.reduce is 'max'; choose one of token_linear, mean_p"),
        ({"loss": "mse"}, "model.alignment.loss is 'mse'; choose one of cosine, infonce"),
        ({"temperature": 0.0}, "model.alignment.temperature is 0.0; it must be > 0"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AlignmentConfig(**options)
