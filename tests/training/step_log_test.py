import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import default_config, from_config_dict
from moemoe_jax.training.step_log import StepLog, flatten_metrics
from moemoe_jax.training.timing import Ledger
from tests.training.timing_test import Clock


class Written(list):
    """Stands for the writer and for the progress bar."""

    def write(self, step, values):
        self.append((step, values))

    def update(self, *numbers):
        self.append(numbers)


def make(first, every, clock):
    settings = default_config()
    settings.train.log_every, settings.train.max_skipped = every, 3
    settings.data.products_per_batch, settings.data.questions_per_product = 4, 2
    writer, shown = Written(), Written()
    ledger = Ledger(clock=clock)
    return StepLog(from_config_dict(settings), 10, first, writer, shown, ledger), writer, shown


def metrics(in_a_row=0):
    return {"loss/total": jnp.float32(2.0), "train/skipped_in_a_row": jnp.int32(in_a_row)}


def test_the_speed_counts_the_steps_since_the_last_line_also_after_a_resume():
    clock = Clock()
    log, writer, shown = make(first=5, every=4, clock=clock)
    for step in range(6, 11):
        clock.now += 2.0
        log(step, metrics(), last=step == 10)
    # Steps 6 to 8 are 24 questions in 6 s, steps 9 and 10 are 16 in 4 s.
    speeds = [(step, values["speed/examples_per_second"]) for step, values in writer]
    assert speeds == [(8, 4.0), (10, 4.0)]
    assert [values["epoch"] for _, values in writer] == [0.8, 1.0]
    assert shown == [(6,), (7,), (8, 2.0, 4.0), (9,), (10, 2.0, 4.0)]


def test_a_run_whose_steps_are_skipped_one_after_the_other_is_ended():
    log, writer, _ = make(first=0, every=1, clock=Clock())
    log(1, metrics(2), last=False)
    with pytest.raises(UserError, match=r"3 steps in a row, up to step 2; lower.* --workdir"):
        log(2, metrics(3), last=False)
    assert len(writer) == 2


def test_vectors_are_named_by_source_or_by_position():
    found = flatten_metrics(
        {"loss": np.float32(1.0), "weight": np.array([0.25, 0.75]), "moe/load": np.array([3, 4])},
        ["text", "image"],
    )
    assert found == {
        "loss": 1.0, "weight/text": 0.25, "weight/image": 0.75, "moe/load/0": 3.0, "moe/load/1": 4.0
    }  # fmt: skip
