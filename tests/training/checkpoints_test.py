import errno
import shutil

import chex
from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel import sharding
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.training.checkpoints import Checkpoints
from tests.training.full_disk import files_of_at_most
from tests.training.toy_state import Toy, abstract, train_state


def test_a_state_comes_back_bit_for_bit_with_its_meta(tmp_path):
    state = train_state(7)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)) is None
        meta = {"data": {"next": 12}, "config": "abc"}
        assert checkpoints.save(3, state, meta, {"f1": 0.5, "bad": float("nan")})
        checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        restored, meta, step = checkpoints.restore_latest(abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    assert (step, meta["step"], meta["metrics"]) == (3, 3, {"f1": 0.5})
    assert (meta["data"], meta["config"]) == ({"next": 12}, "abc")


def test_a_state_of_several_rules_comes_back(tmp_path):
    # Each rule of a partition holds nothing for the other's parameters.
    params = nnx.state(Toy(nnx.Rngs(0)))
    labels = jax.tree.map(lambda x: "sgd" if x.ndim == 1 else "adam", params)
    rules = {"adam": optax.adam(1e-3), "sgd": optax.sgd(1e-3, momentum=0.9)}
    state = optax.partition(rules, labels).init(params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"optimizer": state}, {})
        checkpoints.wait()
        restored = checkpoints.restore_latest(abstract({"optimizer": state})).state["optimizer"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(restored, state)


def test_a_save_in_the_background_is_not_changed_by_the_next_step(tmp_path):
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = jnp.zeros((512, 512))
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        for number in range(1, 4):
            array = step(array)
            checkpoints.save(number, {"x": array})
            for _ in range(3):
                array = step(array)
        for number in range(1, 4):
            state = checkpoints.restore(number, {"x": jax.ShapeDtypeStruct((512, 512), "float32")})
            # Four additions in a round, saved after the first.
            chex.assert_trees_all_equal(state.state["x"], jnp.full((512, 512), 4.0 * number - 3))


def test_it_is_restored_onto_any_mesh(tmp_path):
    state = {"params": nnx.state(Toy(nnx.Rngs(0)))}
    big = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    placed = jax.device_put(state, sharding.param_shardings(state, big))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, placed)
        for config, count in (
            (MeshConfig(fsdp=4), 4),
            (MeshConfig(), 1),
            (MeshConfig(expert=2), 2),
        ):
            mesh = make_mesh(config, jax.devices()[:count])
            places = sharding.param_shardings(state, mesh)
            wanted = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
            )
            restored = checkpoints.restore(1, wanted).state
            chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
            assert jax.tree.map(lambda x: x.sharding, restored) == places


def test_a_step_is_saved_once_and_history_does_not_go_back(tmp_path):
    wanted = {"x": jax.ShapeDtypeStruct((1,), "float32")}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(2, {"x": jnp.zeros(1)})
        assert not checkpoints.save(2, {"x": jnp.ones(1)})
        assert checkpoints.restore_latest(wanted).state["x"][0] == 0.0
        with pytest.raises(UserError, match="step 1 is older than checkpoint 2"):
            checkpoints.save(1, {"x": jnp.zeros(1)})
        with pytest.raises(UserError, match="no checkpoint of step 5"):
            checkpoints.restore(5, wanted)


def test_a_tree_that_does_not_fit_is_refused_leaf_by_leaf(tmp_path):
    state = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4), "c": jnp.zeros(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        wanted = {
            "a": jax.ShapeDtypeStruct((2, 5), "float32"),
            "b": jax.ShapeDtypeStruct((4,), "bfloat16"),
            "d": {"e": jax.ShapeDtypeStruct((1,), "float32")},
        }
        with pytest.raises(UserError) as caught:
            checkpoints.restore(1, wanted)
        text = str(caught.value)
        assert "a has shape (2, 3), not (2, 5); b is float32, not bfloat16; d/e is missing" in text
        assert "and 1 more" in text  # c is unexpected
        assert str(tmp_path / "1") in text
        assert "\n" not in text


def test_a_part_can_be_read_alone(tmp_path):
    state = train_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        with Checkpoints(tmp_path, read_only=True) as reader:
            part = {"params": state["params"]}
            with pytest.raises(UserError, match=r"optimizer/.* is unexpected"):
                reader.restore_latest(abstract(part))
            restored = reader.restore_latest(abstract(part), partial=True)
            chex.assert_trees_all_equal(restored.state, part)
            assert restored.meta["step"] == 1
            with pytest.raises(UserError, match="opened to read only"):
                reader.save(2, state)


def test_a_checkpoint_of_a_run_with_other_settings_is_refused(tmp_path):
    with Checkpoints(tmp_path, config="one") as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)})
        wanted = {"x": jax.ShapeDtypeStruct((2,), "float32")}
        assert checkpoints.restore_latest(wanted).step == 1
    with (
        Checkpoints(tmp_path, config="two") as checkpoints,
        pytest.raises(UserError, match="was saved with other settings"),
    ):
        checkpoints.restore_latest(wanted)


def test_no_save_begins_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**6))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(OSError, match="No space left on device") as caught:
            checkpoints.save(1, {"x": jnp.zeros(10)})
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told_by", ["wait", "latest", "same step", "next save", "close"])
def test_a_write_that_fails_in_the_background_names_the_directory(tmp_path, told_by):
    # Random bits, which do not compress: 256 KiB, where a file may have 32.
    state = {"x": jax.random.normal(jax.random.key(0), (2**16,))}
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.save(1, state)
    checkpoints.wait()
    with files_of_at_most(2**15):
        assert checkpoints.save(2, state)  # begins, and fails later
        with pytest.raises(OSError, match="File too large") as caught:
            if told_by == "wait":
                checkpoints.wait()
            elif told_by == "latest":
                checkpoints.latest_step()
            elif told_by == "same step":
                checkpoints.save(2, state)
            elif told_by == "next save":
                checkpoints.save(3, state)
            else:
                checkpoints.close()
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path))
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore_latest(abstract(state)).state, state)
        assert checkpoints.steps() == [1]


def test_a_background_write_that_does_not_know_its_file_names_the_directory(tmp_path):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", fails)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.wait()
    assert caught.value.filename == str(tmp_path)
    checkpoints.close()


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(UserError, match="keep_last 0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(UserError, match="choose max or min"):
        Checkpoints(tmp_path, best_mode="best")
    with pytest.raises(UserError, match="no checkpoints at"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="a random key"):
        checkpoints.save(1, {"key": jax.random.key(0)})


def test_numbers_in_a_state_become_arrays(tmp_path):
    state = {"count": 3, "rate": np.float32(0.5)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(1, {"count": np.int64(0), "rate": np.float32(0)}).state
        assert (int(restored["count"]), float(restored["rate"])) == (3, 0.5)
        with pytest.raises(ValueError, match="count: 1099511627776 does not fit int32"):
            checkpoints.save(2, {"count": 2**40})


def test_whether_to_stop_is_left_to_the_training_to_ask(tmp_path, monkeypatch):
    # JAX has one count of such questions: that of `stopping.Stop`.
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, {"x": jnp.ones(3)})
        checkpoints.wait()
        assert checkpoints.save(2, {"x": jnp.ones(3)})
    assert not asked
