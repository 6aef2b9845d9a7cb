"""Which checkpoints are kept, and which is the best."""

import jax
import jax.numpy as jnp

from moemoe_jax.training.checkpoints import Checkpoints
from tests.training.toy_state import abstract


def test_the_last_and_the_best_are_kept(tmp_path):
    state = {"x": jnp.zeros(2)}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1, best_metric="f1") as checkpoints:
        for step, f1 in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, float("nan")), (6, 0.4)):
            checkpoints.save(step, {"x": jnp.full(2, step)}, metrics=f1 and {"f1": f1})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
    with Checkpoints(tmp_path, keep_last=2, keep_best=1, best_metric="f1") as checkpoints:
        assert checkpoints.restore_best(abstract(train := {"x": jnp.zeros(2, "int32")})).step == 2
        checkpoints.save(7, {"x": jnp.full(2, 7)}, metrics={"f1": 0.95})  # the new best
        checkpoints.save(8, {"x": jnp.full(2, 8)})
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8]
        assert checkpoints.restore_best(abstract(train)).step == 7
    del state


def test_a_loss_is_best_when_small_and_without_metrics_the_newest_is_best(tmp_path):
    wanted = {"x": jax.ShapeDtypeStruct((1,), "float32")}
    with Checkpoints(tmp_path, keep_last=1, best_metric="loss", best_mode="min") as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.2), (3, 0.4)):
            checkpoints.save(step, {"x": jnp.zeros(1)}, metrics={"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore_best(wanted).step == 2
    with Checkpoints(tmp_path, best_metric="f1") as checkpoints:
        assert checkpoints.restore_best(wanted).step == 3


def test_what_is_known_of_a_checkpoint_goes_with_it(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, best_metric="f1") as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, {"x": jnp.ones(3)}, metrics={"f1": 1.0 if step == 2 else 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]
        assert set(checkpoints._saving) <= {2, 4, 5}


def test_an_evaluation_that_comes_after_the_save_ranks_the_checkpoint(tmp_path):
    wanted = {"x": jax.ShapeDtypeStruct((1,), "float32")}
    options = {"keep_last": 1, "keep_best": 1, "best_metric": "f1"}
    with Checkpoints(tmp_path, **options) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(1)}, metrics={"f1": 0.5})
        checkpoints.save(2, {"x": jnp.full(1, 2.0)}, {"data": 7})
        checkpoints.wait()
        assert checkpoints.restore_best(wanted).step == 1
    with Checkpoints(tmp_path, **options) as checkpoints:
        checkpoints.rank(2, {"f1": 0.9, "bad": float("nan")})
        checkpoints.rank(3, {"f1": 1.0})  # evaluated before it is saved, as usual: nothing to do
        assert checkpoints.steps() == [1, 2] and checkpoints.restore_best(wanted).step == 2
        checkpoints.save(3, {"x": jnp.ones(1)}, metrics={"f1": 0.7})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    # Read anew: each file and leaf is still held against its checksum.
    with Checkpoints(tmp_path, **options) as checkpoints:
        best = checkpoints.restore_best(wanted)
    assert (best.step, best.state["x"][0]) == (2, 2.0)
    assert best.meta == {"data": 7, "step": 2, "metrics": {"f1": 0.9}}
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
