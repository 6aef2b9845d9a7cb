"""Where a training starts or goes on: a checkpoint of its own, another model, or random values."""

import dataclasses
from typing import Any

from flax import nnx
from jax.experimental import multihost_utils
import numpy as np

from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.config import METRICS
from moemoe_jax.training.logging import read_metrics
from moemoe_jax.training.setup import Data, Run, Say, first_state
from moemoe_jax.training.step import TrainState
from moemoe_jax.workdir import WorkDir


def restore_or_initialise(
    config: ExperimentConfig,
    run: Run,
    data: Data,
    checkpoints: Checkpoints,
    resuming: WorkDir | None,
    say: Say,
) -> tuple[TrainState, nnx.State]:
    """The state to go on from and the frozen parameters; puts the data where it goes on.

    Args:
      config: the settings.
      run: what the steps share.
      data: whose training batches are moved.
      checkpoints: of the run.
      resuming: its work directory, None for a new one.
      say: prints a line.
    """
    if resuming and checkpoints.latest_step() == 0:
        # An imported model: parameters alone, which the training starts from.
        return first_state(config, run, say, resuming)
    if resuming and checkpoints.latest_step() is not None:
        state, frozen = run.abstract
        restored = checkpoints.restore_latest(checkpoint_tree(state, frozen))
        data.train.set_state(restored.meta["data"])
        say(f"resuming at step {restored.step} of {run.total_steps}")
        fields = {k: v for k, v in restored.state.items() if k != "frozen"}
        return dataclasses.replace(state, **fields), restored.state["frozen"]
    return first_state(config, run, say)


def checkpoint_tree(state: TrainState, frozen: nnx.State) -> dict[str, Any]:
    """What a checkpoint holds: the fields of the state that are there, and the frozen ones."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if v is not None} | {"frozen": frozen}


def evaluation_at(workdir: WorkDir, step: int) -> dict[str, float] | None:
    """The metrics of the evaluation at `step` as `metrics.jsonl` has them; None when it is owed.

    A run that was asked to stop during an evaluation has a checkpoint of the step without one.
    All processes get the answer of process 0.
    """
    rows = [r for r in read_metrics(workdir.path) if r["step"] == step and "val/questions" in r]
    if not multihost_utils.broadcast_one_to_all(np.array(bool(rows))):
        return None
    return {name: row[f"val/{name}"] for row in rows for name in METRICS if f"val/{name}" in row}
