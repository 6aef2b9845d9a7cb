"""Checkpoints: saved in the background, whole or not at all, restored onto any mesh.

Orbax writes the arrays (`array_manager`). Around it stand the rules that a person relies on: the
last few and the best are kept, each has a manifest that every bit of it is held against before it
is used, a damaged one is named and the one before is used, a tree that does not fit is refused leaf
by leaf before anything is loaded. Random keys are not stored: they follow from the seed and the
step.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import os
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.training import checkpoint_trees as trees
from moemoe_jax.training import damage, disk, manifest
from moemoe_jax.training.array_manager import ArrayManager
from moemoe_jax.training.checksums import checksums
from moemoe_jax.training.manifest import Manifest
from moemoe_jax.training.retention import LastAndBest

ROOM = 2**20  # bytes that a checkpoint may take beside its arrays


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
      config: the hash of the run's settings: kept with each checkpoint, and one that was saved
        with another is refused. None says nothing.
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
        config: str | None = None,
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
        self._read_only, self._metric, self._config = read_only, best_metric, config
        self._sign = -1.0 if best_mode == "min" else 1.0
        self._saving: dict[int, Manifest] = {}  # what was saved here, without the files
        self._verified: dict[int, Manifest] = {}  # whose files were compared with it
        keep = LastAndBest(keep_last, keep_best, self._score)
        self._manager = ArrayManager(self.directory, keep, self._seal, read_only, in_flight)

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save in the background; a step that is saved already is left as it is.

        The checksums are taken before this returns: the arrays may be donated at once.

        Args:
          step: number of updates done.
          state: any tree of arrays (dicts, nnx.State, optax states).
          meta: JSON values: the data iterator's state...
          metrics: of the last evaluation; also stored in the meta as `metrics`.

        Returns:
          Whether a save was started.

        Raises:
          UserError: when a newer checkpoint exists, or on a read-only directory.
          OSError: when this one cannot be written, has no room, or the one before could not be
            written.
        """
        if self._read_only:
            raise UserError(f"{self.directory} was opened to read only: open it for training")
        self.wait()
        step = int(step)
        if step in self.steps():
            return False
        if self.steps() and step < self.steps()[-1]:
            raise UserError(
                f"step {step} is older than checkpoint {self.steps()[-1]} in {self.directory}: "
                "use another work directory or delete the newer checkpoints"
            )
        document = {**(meta or {}), "step": step, "metrics": _finite(metrics or {})}
        leaves = {name: trees.storable(name, leaf) for name, leaf in trees.flatten(state).items()}
        disk.require_room(self.directory, sum(leaf.nbytes for leaf in leaves.values()) + ROOM)
        described = manifest.describe(leaves, checksums(leaves))
        # Those that are kept have their scores asked for; of the others there may be thousands.
        self._saving = {kept: self._saving[kept] for kept in self.steps() if kept in self._saving}
        self._saving[step] = Manifest.of(step, self._config, document, described)
        self._verified.pop(step, None)
        with disk.told_as_os_errors(self.directory):
            self._manager.save_arrays(step, trees.nest(leaves))
        return True

    def rank(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a checkpoint, if there is one of this step, the metrics of a later evaluation.

        Raises:
          DamagedError: when it is not what was saved.
        """
        if step not in self.steps():
            return
        self.wait()
        saved, place = self._verify(step), self._place(step)
        ranked = dataclasses.replace(saved, meta={**saved.meta, "metrics": _finite(metrics)})
        if is_primary():
            manifest.replace(place, ranked)
        barrier(f"step {step} is ranked")
        self._saving.pop(step, None)
        self._verified[step] = ranked

    def _seal(self, folder: epath.Path, step: int) -> None:
        """Writes the manifest of a save that is complete."""
        manifest.seal(folder, self._saving[step])

    def steps(self) -> list[int]:
        """The steps of the checkpoints, growing; which of them are whole, reading them tells."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step that is whole, or None when there is none at all; see `restore_latest`.

        Raises:
          UserError: when there are some and all are damaged.
        """
        self.wait()
        return self._first_whole(self.steps()[::-1], lambda step: self._verify(step).step)

    def _ranked(self) -> list[int]:
        """All steps, the best first, the newer one of equals; those without the metric come last.

        One whose manifest is damaged may be the best: it comes before all, so that it is named.
        """
        self.wait()
        scores = {step: self._score(step, damaged=math.inf) for step in self.steps()}
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def _score(self, step: int, damaged: float = -math.inf) -> float:
        """Ranks a checkpoint, higher is better; one without the metric ranks below all."""
        try:
            saved = self._saving.get(step) or damage.read_manifest(self._place(step))
        except damage.DamagedError:
            return damaged
        value = saved.meta["metrics"].get(self._metric)
        return -math.inf if value is None else self._sign * value

    def restore_latest(self, abstract_state: Any, partial: bool = False) -> Restored | None:
        """Restores the newest checkpoint that is whole, or returns None when there is none at all.

        A newer one that is damaged is named in a warning and, unless this is read only, put aside
        under another name (`12.damaged`), so that its step can be saved again.

        Raises:
          UserError: when there are some and all are damaged; see `restore` for more.
        """
        self.wait()
        return self._first_whole(
            self.steps()[::-1], lambda step: self.restore(step, abstract_state, partial)
        )

    def restore_best(self, abstract_state: Any, partial: bool = False) -> Restored | None:
        """Restores the best checkpoint by the metric, or the newest when none has the metric.

        Where the best is damaged the next best is used, as in `restore_latest`.
        """
        return self._first_whole(
            self._ranked(), lambda step: self.restore(step, abstract_state, partial)
        )

    def restore(self, step: int, abstract_state: Any, partial: bool = False) -> Restored:
        """Restores one checkpoint onto the shardings of `abstract_state`, verified.

        Args:
          step: one of `steps()`.
          abstract_state: the tree to fill: ShapeDtypeStructs with shardings, or arrays, whose
            shape, dtype and sharding are taken. Without a sharding: the first device.
          partial: leaves of the checkpoint that the tree does not have are not an error (a
            reader that wants the parameters without the optimizer's state).

        Raises:
          DamagedError: when it is not what was saved.
          UserError: when there is no such step, the trees differ, or it was saved with other
            settings.
        """
        self.wait()
        saved, place = self._verify(step), self._place(step)
        wanted = {
            name: trees.abstract(leaf) for name, leaf in trees.flatten(abstract_state).items()
        }
        trees.compare(wanted, saved.leaves, str(place), partial)
        if None not in (saved.config, self._config) and saved.config != self._config:
            raise UserError(
                f"checkpoint {place} was saved with other settings than this run's: use the "
                "config.json that it was saved with, or another work directory"
            )
        nested = trees.nest(wanted)
        try:
            result = self._manager.restore_arrays(step, nested, partial)
        except (ValueError, OSError) as error:
            raise damage.DamagedError(place, str(error)) from error
        leaves = trees.flatten(result)
        found = checksums(leaves)
        wrong = [name for name in wanted if found[name] != saved.leaves[name].checksum]
        if wrong:
            raise damage.DamagedError(place, f"not read as saved: leaves {damage.shown(wrong)}")
        structure = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(structure, [leaves[name] for name in wanted])
        return Restored(state, saved.meta, step)

    def _verify(self, step: int) -> Manifest:
        """Compares the files of a checkpoint with its manifest, once, and returns that."""
        if step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.directory}: {self.steps()}")
        if step not in self._verified:
            self._verified[step] = damage.verify(self._place(step))
        return self._verified[step]

    def _first_whole(self, steps: list[int], read: Callable[[int], Any]) -> Any:
        """Reads the first of the steps that is whole; says which it is not, and puts them aside."""
        whole = damage.first_whole(steps, read)
        if whole is None:
            return None
        for place, cause in ((error.place, error.cause) for error in whole.damaged):
            kept = "" if self._read_only else f"; it is kept as {damage.put_aside(place).name}"
            if is_primary():
                logging.warning(
                    "checkpoint %s is damaged (%s): step %d is used instead%s",
                    place, cause, whole.step, kept,
                )  # fmt: skip
        if whole.damaged and not self._read_only:
            self._manager.reload()
        return whole.result

    def _place(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def wait(self) -> None:
        """Waits until what was started is on disk.

        Raises:
          OSError: when it could not be written; names the directory.
        """
        with disk.told_as_os_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, as `wait` does, and releases the threads."""
        with disk.told_as_os_errors(self.directory):
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a manifest can hold."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}
