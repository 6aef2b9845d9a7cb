"""Opens what a run keeps of its encodings, where it keeps any: in memory, or in the work directory.

What is kept on a disk belongs to the data, the tokenizer, the model's shape and its frozen weights.
Of these there are fingerprints; where one differs, what is there is made anew. Of image files that
records name, sizes and times of change are in it, which a copy may change (`cp -p` does not).
"""

from collections.abc import Callable
import functools
import hashlib
from pathlib import Path
import shutil

from flax import nnx
import jax

from moemoe_jax.data.train_batches import TrainBatches
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.fingerprint import content_digest, input_digest, what_matters
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.parallel.sharding import path_name
from moemoe_jax.training.checksums import checksums
from moemoe_jax.training.encode_once import EncodeOnce
from moemoe_jax.training.encoders import cache_of
from moemoe_jax.training.kept_rows import KeptRows, RowsOnDisk
from moemoe_jax.training.setup import Run
from moemoe_jax.workdir import WorkDir


def keep_encodings(
    config: ExperimentConfig,
    run: Run,
    batches: TrainBatches,
    frozen: nnx.State,
    workdir: WorkDir,
    say: Callable[[str], None],
) -> EncodeOnce | None:
    """What encodes the batches of a run and keeps what it gave; None where nothing is kept.

    Args:
      config: the settings.
      run: what the steps share.
      batches: of the run's training.
      frozen: the frozen parameters, on the devices.
      workdir: of the run; its tokenizer is there.
      say: prints a line.

    Raises:
      UserError: there is no room, or encodings are to be kept although they change.
    """
    kind = cache_of(config, repeats=run.total_steps > run.steps_per_epoch)
    if kind == "none":
        return None
    open_rows = KeptRows
    if kind == "disk":
        barrier("the tokenizer is in the work directory")
        place = f"{jax.process_index()}-of-{jax.process_count()}"
        if is_primary():
            _remove_of_others(workdir.encodings, say)
        open_rows = functools.partial(
            RowsOnDisk,
            folder=workdir.encodings / place,
            fingerprint=_fingerprint(config, batches, frozen, workdir),
            say=say,
        )
    kept = EncodeOnce(config, run, batches, frozen, open_rows)
    rows = kept.products
    where = rows.folder if isinstance(rows, RowsOnDisk) else "memory"
    say(
        f"encodings: those of {rows.capacity} of {batches.products} products are kept in {where}, "
        f"{kept.row_bytes / 1024:.0f} KiB each; {len(rows)} are there"
    )
    return kept


def _remove_of_others(folder: Path, say: Callable[[str], None]) -> None:
    """Removes what another number of processes has left: each keeps the rows that it makes."""
    for other in sorted(folder.glob("*-of-*")):
        if not other.name.endswith(f"-of-{jax.process_count()}"):
            say(f"encodings: {other} is of another number of processes; it is removed")
            shutil.rmtree(other, ignore_errors=True)


def _fingerprint(
    config: ExperimentConfig, batches: TrainBatches, frozen: nnx.State, workdir: WorkDir
) -> dict[str, str]:
    """Digests of all that encodings depend on; all processes must ask for them together."""
    leaves = jax.tree_util.tree_leaves_with_path(frozen)
    weights = checksums({path_name(path): leaf for path, leaf in leaves})
    return {
        "the data": input_digest(config.data.source, Path()),
        "size or time of image files": getattr(batches.source, "files_digest", ""),
        "the settings of data or model": _digest(repr((what_matters(config.data), config.model))),
        "the tokenizer": content_digest(workdir.tokenizer),
        "the frozen weights": _digest(repr(sorted(weights.items()))),
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
