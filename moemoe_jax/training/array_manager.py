"""Orbax's manager of checkpoints, set up for arrays alone: what else is kept is the manifest's."""

from typing import Any

from etils import epath
import orbax.checkpoint as ocp

from moemoe_jax.training.damage import ARRAYS
from moemoe_jax.training.retention import LastAndBest
from moemoe_jax.training.sealing import Seal, sealed_folder


class ArrayManager(ocp.CheckpointManager):
    """Writes and reads the arrays of checkpoints.

    It leaves it to `stopping.Stop` to ask whether to stop. Orbax would ask as well, under the
    number of the step, where `Stop` has a count of its own. JAX knows of one count alone: it would
    wait for a number that `Stop` is past, or far from, and the training would go on.
    """

    def __init__(
        self,
        directory: epath.Path,
        keep: LastAndBest,
        seal: Seal,
        read_only: bool,
        in_flight: int | None,
    ):
        """Opens a directory, which is made if it does not exist.

        Args:
          directory: of the checkpoints.
          keep: which of them are kept.
          seal: see `sealing.sealed_folder`.
          read_only: nothing is made, cleaned or deleted.
          in_flight: bytes of arrays that may be on their way to disk at a time; None is no limit.
        """
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                temporary_path_class=sealed_folder(directory, seal),
                # What Orbax keeps beside the arrays may be damaged: it is not read unverified.
                lightweight_initialize=True,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={
                ARRAYS: ocp.PyTreeCheckpointHandler(
                    save_concurrent_gb=None if in_flight is None else in_flight / 10**9
                ),
            },
        )

    def save_arrays(self, step: int, tree: Any) -> None:
        """Starts to save a tree of arrays in the background."""
        self.save(step, args=ocp.args.Composite(**{ARRAYS: ocp.args.PyTreeSave(tree)}), force=True)

    def restore_arrays(self, step: int, wanted: Any, partial: bool) -> Any:
        """Reads the arrays of a step as `wanted` has them: shape, dtype and sharding.

        Args:
          step: of the checkpoint.
          wanted: a tree of ShapeDtypeStructs.
          partial: leaves that `wanted` does not have are not an error.
        """
        arrays = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=partial,
        )
        return self.restore(step, args=ocp.args.Composite(**{ARRAYS: arrays}))[ARRAYS]

    def reached_preemption(self, step: int) -> bool:
        """No; never asks."""
        del step
        return False
