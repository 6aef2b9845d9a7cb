"""Checkpoints that are not what was saved."""

import random
import re
import shutil

import chex
from etils import epath
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.training import manifest
from moemoe_jax.training.checkpoints import Checkpoints
from tests.training import damages
from tests.training.toy_state import abstract, train_state


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2, with as many bytes: to be copied."""
    place = tmp_path_factory.mktemp("saved")
    with Checkpoints(place) as checkpoints:
        checkpoints.save(1, train_state(1), {"data": 1})
        checkpoints.save(2, train_state(2), {"data": 2})
    return place


@pytest.fixture
def two(two_saved, tmp_path):
    return shutil.copytree(two_saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("damage", damages.KINDS, ids=lambda damage: damage.__name__)
def test_where_the_newest_is_damaged_it_is_named_and_the_one_before_is_used(two, damage, caplog):
    damage(two / "2", two / "1")
    state = train_state(1)
    with Checkpoints(two) as checkpoints:
        with pytest.raises(UserError, match=rf"checkpoint {two / '2'} is damaged \(") as caught:
            checkpoints.restore(2, abstract(state))
        assert "\n" not in str(caught.value)
        assert checkpoints.latest_step() == 1
        restored = checkpoints.restore_latest(abstract(state))
        chex.assert_trees_all_equal(restored.state, state)
        assert (restored.step, restored.meta["data"]) == (1, 1)
        (warning,) = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
        assert warning.endswith(": step 1 is used instead; it is kept as 2.damaged")
        # The step is taken anew, and the next start uses it.
        assert checkpoints.save(2, train_state(2))
    with Checkpoints(two) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)).step == 2
    assert sorted(path.name for path in two.iterdir()) == ["1", "2", "2.damaged"]


def test_a_flipped_bit_of_an_array_names_the_leaf(two):
    damages.flip(damages.arrays(two / "2"), 8 * 300)
    with Checkpoints(two) as checkpoints, pytest.raises(UserError, match="leaves: ") as caught:
        checkpoints.restore(2, abstract(train_state(1)))
    named = re.search(r"leaves: ([^ ,)]+)", str(caught.value))[1]
    assert named in manifest.read(epath.Path(two / "1"), 1).leaves


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_anywhere_is_found(two, seed):
    path, bit = damages.any_bit(two / "2", random.Random(seed))
    damages.flip(path, bit)
    with Checkpoints(two, read_only=True) as checkpoints:
        assert checkpoints.restore_latest(abstract(train_state(1)), partial=True).step == 1
    assert (two / "2").exists()  # a reader leaves it to the training to put aside


def test_what_is_read_is_held_against_what_was_saved(two, monkeypatch):
    # As if Orbax, or the memory, had changed a value between the file and the device.
    state = train_state(2)
    with Checkpoints(two) as checkpoints:
        whole = checkpoints._manager.restore

        def wrong(step, args):
            result = whole(step, args=args)
            if step == 2:
                result["state"]["params"]["half"] = result["state"]["params"]["half"].at[3].add(1)
            return result

        monkeypatch.setattr(checkpoints._manager, "restore", wrong)
        with pytest.raises(UserError, match="not read as saved: leaves params/half"):
            checkpoints.restore(2, abstract(state))
        assert checkpoints.restore_latest(abstract(state)).step == 1
        monkeypatch.undo()
        checkpoints.save(2, train_state(3))
        assert checkpoints.restore_latest(abstract(state)).step == 2


def test_where_none_is_whole_nothing_is_moved_and_each_is_named(two):
    damages.extra(two / "1", None)
    damages.empty(two / "2", None)
    with Checkpoints(two) as checkpoints:
        for read in (checkpoints.latest_step, lambda: checkpoints.restore_latest({})):
            with pytest.raises(UserError, match=r"no checkpoint in .* is whole") as caught:
                read()
            text = str(caught.value)
            assert "2: it is incomplete: manifest.json is missing" in text
            assert "1: state/d/0123 is unexpected" in text
            assert "\n" not in text
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("what", ["arrays", "manifest"])
def test_where_the_best_is_damaged_the_next_best_is_used(tmp_path, what, caplog):
    wanted = {"x": jax.ShapeDtypeStruct((2,), "int32")}
    options = {"keep_last": 3, "best_metric": "f1"}
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step, f1 in ((1, 0.5), (2, 0.9), (3, 0.4)):
            checkpoints.save(step, {"x": jnp.full(2, step)}, metrics={"f1": f1})
    path = damages.arrays(tmp_path / "2") if what == "arrays" else tmp_path / "2" / manifest.NAME
    damages.flip(path, 80)
    with Checkpoints(tmp_path, **options) as checkpoints:
        assert checkpoints.restore_best(wanted).step == 1
        assert checkpoints.steps() == [1, 3]
        assert "step 1 is used instead" in caplog.text


def test_leftovers_of_a_killed_save_are_ignored_and_cleaned(tmp_path):
    state = {"x": jnp.arange(3.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    (unfinished / manifest.NAME).unlink()
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1]
        assert unfinished.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)).step == 1
        checkpoints.save(2, state)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
    assert not unfinished.exists()
