import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.aot.hlo import Module
from moemoe_jax.aot.work import total_flops
from moemoe_jax.nn.in_turn import Sizes, dot_in_turn, line_up, sizes_for


@pytest.mark.parametrize(
    ("mean", "most", "rows", "usual"),
    [
        # From half the mean in steps of 1.125, past twice of it in steps of 1.25.
        (32, 128, (16, 24, 32, 40, 48, 56, 64, 80, 104, 128), 32),
        (152, 608, (80, 96, 112, 128, 144, 168, 192, 216, 248, 280, 320, 400, 504, 608), 168),
        (2.25, 9, (8, 9), 8),
        (8.5, 9, (8, 9), 9),
        (128, 20, (20,), 20),  # a capacity below half the mean
    ],
)
def test_sizes_go_from_half_the_mean_queue_to_the_longest(mean, most, rows, usual):
    assert sizes_for(mean, most) == Sizes(rows, usual)


def test_room_behind_by_hand():
    assert Sizes((8, 12, 20), 8).behind == 7  # one row in 8, or 13 in 20
    assert Sizes((4, 14, 20), 4).behind == 9


def test_turns_by_hand():
    turns = line_up(jnp.array([9, 0, 20, 3, 8]), Sizes((8, 12, 20), 8))
    chex.assert_trees_all_equal(turns.expert, jnp.array([1, 3, 4, 0, 2]))
    chex.assert_trees_all_equal(turns.start, jnp.array([0, 0, 3, 11, 20]))
    # Nothing for expert 1; 8 rows for 3 and 4, 12 for 0, 20 for 2.
    chex.assert_trees_all_equal(turns.first, jnp.array([1, 3, 4, 5]))
    chex.assert_trees_all_equal(turns.starts(), jnp.array([11, 0, 20, 0, 3]))


def problem(load, sizes, slots=40):
    """Rows as they lie, each one's expert, and kernels; what is not theirs is of nobody."""
    turns = line_up(jnp.array(load), sizes)
    owner = np.repeat(np.asarray(turns.expert), np.asarray(turns.load))
    keys = jax.random.split(jax.random.key(0), 3)
    slots += sizes.behind
    rows = jax.random.normal(keys[0], (slots, 3)).at[len(owner) :].set(7.0)
    along = jax.random.normal(keys[1], (slots, 5)).at[len(owner) :].set(0.0)
    return rows, jax.random.normal(keys[2], (len(load), 3, 5)), turns, owner, along


@pytest.mark.parametrize(
    "load",
    [
        (9, 0, 20, 3, 8),
        (1, 1, 1, 1, 1),  # each in excess of all that follow
        (0, 0, 13, 0, 0),  # in excess of the room behind
        (20, 0, 20, 0, 0),
        (0, 0, 0, 0, 0),
    ],
)
def test_rows_meet_their_own_experts_kernel_in_value_and_gradient(load):
    sizes = Sizes((8, 12, 20), 8)
    rows, kernel, turns, owner, along = problem(load, sizes)

    def found(rows, kernel):
        return dot_in_turn(sizes, rows, kernel, turns)[: len(owner)]

    def expected(rows, kernel):
        return jnp.einsum("ni,nio->no", rows[: len(owner)], kernel[owner])

    def outcome(function):
        value, pull = jax.vjp(function, rows, kernel)
        by_rows, by_kernel = pull(along[: len(owner)])
        return value, by_rows[: len(owner)], by_kernel

    chex.assert_trees_all_close(outcome(found), outcome(expected), atol=1e-5)


def test_loops_say_how_often_they_usually_turn():
    # Five queues are usually of size 8, whatever they are here.
    sizes = Sizes((4, 8, 12, 20), 8)
    rows, kernel, turns, _, _ = problem((9, 0, 20, 3, 8), sizes)

    def gradient(rows, kernel, turns):
        def squares(rows, kernel):
            return jnp.sum(dot_in_turn(sizes, rows, kernel, turns) ** 2)

        return jax.grad(squares, (0, 1))(rows, kernel)

    lowered = jax.jit(gradient).lower(rows, kernel, turns)
    product = 2.0 * 5 * 8 * 3 * 5
    for text in (lowered.as_text("hlo", debug_info=True), lowered.compile().as_text()):
        assert total_flops(Module(text)) == 3 * product


def test_nothing_is_copied_from_turn_to_turn():
    sizes = Sizes((8, 12, 20), 8)
    rows, kernel, turns, _, _ = problem((9, 0, 20, 3, 8), sizes)
    dot = jax.jit(functools.partial(dot_in_turn, sizes))
    module = Module(dot.lower(rows, kernel, turns).compile().as_text())
    whole = (rows.shape[0], kernel.shape[2])
    kinds = [r.instruction.opcode for r in module.runs() if r.instruction.arrays[0].dims == whole]
    assert "dynamic-update-slice" in kinds
    assert "copy" not in kinds
