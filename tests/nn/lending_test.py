import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import dispatch, queues
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.lending import Loans, Room, copies, lend, room_for
from moemoe_jax.nn.routing import Routing

D, F, E, K, T = 5, 7, 8, 2, 512
ROOM = room_for(T, K, E)


def test_the_room_by_hand():
    # A mean queue of 2 * 512 / 8 = 128: 136 slots each, four blocks of the least size.
    assert room_for(T, K, E) == Room(own=136, blocks=4, size=64)
    assert ROOM.slots(E) == 8 * 136 + 4 * 64
    # 2 * 8192 / 8 = 2048: 1.0625 and 0.125 of that.
    assert room_for(8192, K, E) == Room(own=2176, blocks=4, size=256)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts"),
    [(504, 2, 8), (4096, 2, 4), (4096, 1, 1)],  # short queues, and experts of half of the tokens
)
def test_where_lending_does_not_pay(tokens, top_k, experts):
    assert room_for(tokens, top_k, experts) is None


def test_loans_by_hand():
    # Of ten slots each and blocks of four: expert 1 is two short, expert 3 is five short.
    room = Room(own=10, blocks=4, size=4)
    loans = lend(jnp.array([10, 12, 0, 15]), room)
    chex.assert_trees_all_equal(loans.first[jnp.array([1, 3])], jnp.array([0, 1]))
    chex.assert_trees_all_equal(loans.owner, jnp.array([1, 3, 3, 3], jnp.int32))  # the last: any
    assert loans.wanted == 3
    assert lend(jnp.array([10, 12, 0, 25]), room).wanted == 1 + 4  # one block too many


def test_copied_kernels_have_the_gradient_of_taking_them():
    kernel = jax.random.normal(jax.random.key(0), (3, 2, 4))
    owner = jnp.array([1, 0, 1, 1])
    probe = jax.random.normal(jax.random.key(1), (4, 2, 4))
    value, gradient = jax.value_and_grad(lambda k: jnp.sum(copies(k, owner) * probe))(kernel)
    np.testing.assert_allclose(value, jnp.sum(kernel[owner] * probe), rtol=1e-6)
    expected = jnp.stack([probe[1], probe[0] + probe[2] + probe[3], jnp.zeros((2, 4))])
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)


def crowded(extra):
    """Choices: the first `extra` tokens choose experts 0 and 1, the others take turns."""
    turn = jnp.arange(T)
    first = jnp.where(turn < extra, 0, turn % E)
    return jnp.stack([first, (first + 1) % E], axis=1), turn != 7


def outcome(backend, extra):
    """Value, gradients and the numbers of rows of a mixture, and what is kept for going back."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "wi": jax.random.normal(keys[0], (E, D, F)) * D**-0.5,
        "wo": jax.random.normal(keys[1], (E, F, D)) * F**-0.5,
    }
    x, weights = jax.random.normal(keys[2], (T, D)), jax.random.uniform(keys[3], (T, K))
    chosen, valid = crowded(extra)

    def mixed(params, x, weights):
        def run(kernels, key, rows, numbers, dot):
            hidden = jax.nn.relu(dot(rows, kernels["wi"])) * jnp.cos(numbers)[..., None]
            return dot(hidden, kernels["wo"])

        routing = Routing(chosen, weights, jnp.zeros((T, E)), jnp.zeros((T, E)))
        return dispatch.mix(Experts(run, params), x, routing, valid, backend=backend)[0]

    def loss(*arguments):
        y = mixed(*arguments)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    return run(params, x, weights), functools.partial(jax.vjp, mixed, params, x, weights)


# Even queues are of 128. With 80 tokens more or less, two experts are lent blocks; when all tokens
# choose the same two, there are not as many.
@pytest.mark.parametrize(("extra", "fits"), [(0, True), (80, True), (512, False)])
def test_longer_queues_go_on_in_what_is_lent_and_equal_the_oracle(extra, fits):
    chosen, valid = crowded(extra)
    loans: Loans = lend(queues.enqueue(chosen, valid, E).load, ROOM)
    assert (loans.wanted <= ROOM.blocks) == fits
    assert (loans.wanted > 0) == (extra > 0)
    found, expected = outcome("index", extra)[0], outcome("dense", extra)[0]
    chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-5)


def test_what_is_kept_for_the_backward_pass_is_of_the_room_alone():
    _, backward = outcome("index", 0)[1]()
    shapes = {leaf.shape for leaf in jax.tree.leaves(backward)}
    assert any(shape[:2] == (E, ROOM.own) for shape in shapes)
    tiers = queues.capacity_tiers(T, K, E)
    assert not any(shape[:2] == (E, size) for shape in shapes for size in tiers)
