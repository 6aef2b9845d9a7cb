"""Checkpoints: saved in the background, whole or not at all, restored onto any mesh.

Orbax writes the arrays. Around it stand the rules that a person relies on: the last few and the
best are kept, a tree that does not fit is refused leaf by leaf before anything is loaded, and a
damaged directory is named. Random keys are not stored: they follow from the seed and the step.
"""

from collections.abc import Iterator, Mapping
import contextlib
import math
import os
import re
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.sharding import SingleDeviceSharding
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from moemoe_jax.errors import UserError
from moemoe_jax.training import checkpoint_trees as trees


class Restored(NamedTuple):
    """What a checkpoint held: `state` has the structure that was asked for."""

    state: Any
    meta: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
      directory: a local path or a bucket; made if it does not exist.
      keep_last: how many of the newest are kept.
      keep_best: how many of the best by `best_metric` are kept beside them.
      best_metric: name of the metric that ranks checkpoints; None keeps only the newest.
      best_mode: "max" or "min".
      read_only: for readers beside a running training: nothing is made, cleaned or deleted.
      in_flight: bytes of arrays that may be on their way to disk at a time, each of which takes
        that much memory once more; more than the largest array has. None is no limit.

    Raises:
      UserError: for counts or a mode that make no sense, or nothing to read.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: str = "max",
        read_only: bool = False,
        in_flight: int | None = None,
    ):
        if keep_last < 1 or keep_best < 0:
            raise UserError(f"keep_last {keep_last} must be 1 or more, keep_best {keep_best} 0 up")
        if best_mode not in ("max", "min"):
            raise UserError(f"best_mode is {best_mode!r}: choose max or min")
        path = epath.Path(directory)
        self.directory = path if "://" in str(path) else path.absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoints at {self.directory}: train first, or check the path")
        self._read_only, self._metric = read_only, best_metric
        self._sign = -1.0 if best_mode == "min" else 1.0
        keep = [policies.LatestN(keep_last)]
        if best_metric is not None:
            keep.append(policies.BestN(get_metric_fn=self._score, n=keep_best))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=self._score,  # makes Orbax store the metric beside the checkpoint
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    save_concurrent_gb=None if in_flight is None else in_flight / 10**9
                ),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Ranks a checkpoint, higher is better; one without the metric ranks below all."""
        value = metrics.get(self._metric) if metrics else None
        return -math.inf if value is None else self._sign * value

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save in the background; a step that is saved already is left as it is.

        Args:
          step: number of updates done.
          state: any tree of arrays (dicts, nnx.State, optax states).
          meta: JSON values: the data iterator's state, the hash of the config...
          metrics: of the last evaluation; also stored in the meta as `metrics`.

        Returns:
          Whether a save was started.

        Raises:
          UserError: when a newer checkpoint exists, or on a read-only directory.
          OSError: when this one cannot be written, or the one before could not be.
        """
        if self._read_only:
            raise UserError(f"{self.directory} was opened to read only: open it for training")
        step = int(step)
        if step in self.steps():
            return False
        if self.steps() and step < self.steps()[-1]:
            raise UserError(
                f"step {step} is older than checkpoint {self.steps()[-1]} in {self.directory}: "
                "use another work directory or delete the newer checkpoints"
            )
        values = {name: float(value) for name, value in (metrics or {}).items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        document = {**(meta or {}), "step": step, "metrics": finite}
        best = {self._metric: finite[self._metric]} if self._metric in finite else {}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(trees.nest(trees.flatten(state))),
                    meta=ocp.args.JsonSave(document),
                ),
                metrics=best,
                force=True,
            )
        return True

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, growing."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return self.steps()[-1] if self.steps() else None

    def best_step(self) -> int | None:
        """The step with the best metric (the newer one of equals); None when none has it."""
        self.wait()
        scores = [(self._score(self._manager.metrics(step)), step) for step in self.steps()]
        scores = [pair for pair in scores if pair[0] > -math.inf]
        return max(scores)[1] if scores else None

    def restore_latest(self, abstract_state: Any, partial: bool = False) -> Restored | None:
        """Restores the newest checkpoint, or returns None when there is none; see `restore`."""
        step = self.latest_step()
        return None if step is None else self.restore(step, abstract_state, partial)

    def restore_best(self, abstract_state: Any, partial: bool = False) -> Restored | None:
        """Restores the best checkpoint by the metric, or the newest when none has the metric."""
        step = self.best_step()
        if step is None:
            return self.restore_latest(abstract_state, partial)
        return self.restore(step, abstract_state, partial)

    def restore(self, step: int, abstract_state: Any, partial: bool = False) -> Restored:
        """Restores one checkpoint onto the shardings of `abstract_state`.

        Args:
          step: one of `steps()`.
          abstract_state: the tree to fill: ShapeDtypeStructs with shardings, or arrays, whose
            shape, dtype and sharding are taken. Without a sharding: the first device.
          partial: leaves of the checkpoint that the tree does not have are not an error (a
            reader that wants the parameters without the optimizer's state).

        Raises:
          UserError: when there is no such step, the trees differ, or the checkpoint is damaged.
        """
        self.wait()
        place = self.directory / str(step)
        if step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.directory}: {self.steps()}")
        wanted = {name: _abstract(leaf) for name, leaf in trees.flatten(abstract_state).items()}
        trees.compare(wanted, self._stored(step), str(place), partial)
        nested = trees.nest(wanted)
        try:
            result = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        item=nested,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(nested),
                        partial_restore=partial,
                    ),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise self._damaged(step, error) from error
        leaves = trees.flatten(result["state"])
        structure = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(structure, [leaves[name] for name in wanted])
        return Restored(state, result["meta"], step)

    def read_meta(self, step: int) -> dict[str, Any]:
        """Reads the meta of one checkpoint alone.

        Raises:
          UserError: when it cannot be read.
        """
        self.wait()
        try:
            return self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
        except Exception as error:
            raise self._damaged(step, error) from error

    def _stored(self, step: int) -> dict[str, Any]:
        """Reads the shapes and dtypes of a checkpoint, without its arrays."""
        try:
            metadata = self._manager.metadata(step).item_metadata["state"]
            if metadata is None:
                raise FileNotFoundError("its state is missing")
            return trees.flatten(metadata.tree)
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        older = [other for other in self.steps() if other < step]
        remedy = f"continue from step {older[-1]}" if older else "start anew"
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return UserError(
            f"checkpoint {self.directory / str(step)} is damaged ({cause}): "
            f"delete that directory to {remedy}"
        )

    def reached_preemption(self, step: int) -> bool:
        """Whether the machine is about to be taken away; all processes agree on the step."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until what was started is on disk.

        Raises:
          OSError: when it could not be written; names the directory.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, as `wait` does, and releases the threads."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Gives what stops a write, such as a full disk, as the system's error for the directory.

        TensorStore writes in the background and tells of it later, as a ValueError whose text
        holds the system's number; Python's own writes there may not know the file's name.
        """
        try:
            yield
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise self._unwritten(error.errno) from error
        except ValueError as error:
            number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
            if number is None:
                raise
            raise self._unwritten(int(number[1])) from error

    def _unwritten(self, number: int) -> OSError:
        return OSError(number, os.strerror(number), str(self.directory))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of an array or ShapeDtypeStruct."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError("with several processes every leaf to restore needs a sharding")
        sharding = SingleDeviceSharding(jax.devices()[0])
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=sharding)
