"""Batches that come encoded: a product, and a question, is encoded once and then kept.

What is kept is what `MoEMoE.encode_sources` gives, before anything depends on a question, and what
`encode_question` gives; `encoders.cache_of` says when that never changes. A product is known by the
number of its record, so one that is kept need not even be read again.

Several processes run one program, so they must encode equally often, however many products each
lacks. None asks the others: which rows a process makes follows from the mesh, and what it keeps
from the rows it made, so each of them knows what all of them lack.

Shapes: P products a batch, U questions of its table, C products encoded at a time, S sources.
"""

from collections.abc import Callable
import hashlib
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np

from moemoe_jax.data.batching import Batch, neutral_sources
from moemoe_jax.data.train_batches import TrainBatches
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.parallel.axes import shards, using
from moemoe_jax.parallel.sharding import (
    local_part,
    place_batch,
    process_rows,
    replicated,
    rows_sharding,
)
from moemoe_jax.training.kept_rows import KeptRows, RowsOnDisk, bytes_of
from moemoe_jax.training.setup import Run

Leaves = list[np.ndarray]

_PARTS = 4  # a batch of which nothing is kept is encoded in about so many parts
_QUESTIONS_SHARE = 8  # questions get at most this part of the room


class EncodeOnce:
    """Turns the batches of the pipeline into batches on the devices, encoded.

    Args:
      config: the settings.
      run: what the steps share.
      batches: of the pipeline; it is told which products need not be read.
      frozen: the frozen parameters, on the devices.
      open_rows: makes the place where products are kept, of the shapes and the number of its rows.

    Raises:
      UserError: there is no room for a single product.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run: Run,
        batches: TrainBatches,
        frozen: nnx.State,
        open_rows: Callable[..., KeptRows] = KeptRows,
    ):
        self._mesh, self._batches, self._frozen = run.mesh, batches, frozen
        self._names = [source.name for source in config.data.sources]
        products, parts = config.data.products_per_batch, shards("batch", run.mesh)
        self._size = _part_of(products, parts)
        self._encode_sources, self._encode_questions = _programs(run, self._size)
        self._question_rows = _part_of(batches.rows, parts)

        example = neutral_sources(config.data, self._size)
        present = {name: np.ones(self._size, bool) for name in self._names}
        one = {"sources": example, "source_valid": present}
        found = jax.eval_shape(self._encode_sources, frozen, one)
        ids = np.zeros((self._question_rows, config.data.question_tokens), np.int32)
        asked = jax.eval_shape(self._encode_questions, frozen, ids)
        self._trees = jax.tree.structure(found), jax.tree.structure(asked)
        shapes = [*_row_shapes(found), ((len(self._names),), np.dtype(bool))]
        room = config.train.cache_encodings_mib * 2**20
        row, question = bytes_of(shapes), bytes_of(_row_shapes(asked))
        questions = max(1, min(batches.questions, room // _QUESTIONS_SHARE // question))
        capacity = min(batches.products, (room - questions * question) // row)
        if capacity < 1:
            raise UserError(
                f"train.cache_encodings_mib is {config.train.cache_encodings_mib}, but the "
                f"encodings of one product take {row / 2**20:.3g} MiB; give more, or set "
                "train.cache_encodings=none"
            )
        self.products, self.row_bytes = open_rows(shapes, capacity), row
        self._questions = KeptRows(_row_shapes(asked), questions)
        self._unchecked = dict(getattr(self.products, "earlier", {}))
        self._rows = process_rows(run.mesh, products)
        self._made_at_once = {p: len(r) for p, r in process_rows(run.mesh, self._size).items()}
        self._kept_by = _kept_by_all(self.products)
        batches.needless = self.has

    def has(self, record: int) -> bool:
        """Whether a product is kept, and what is kept of it is known to be right."""
        return record in self.products and record not in self._unchecked

    def __call__(self, step: int, batch: Batch) -> dict[str, Any]:
        """Encodes what is new in a batch and puts the batch on the devices.

        Args:
          step: of the batch, from 0.
          batch: of the pipeline; products that are kept may lack their sources.

        Returns:
          the batch with `encoded_questions` and `encoded_sources` for `question_ids` and `sources`.
        """
        records = self._batches.records(step)
        mine = records[list(self._rows[jax.process_index()])].tolist()
        self._check(mine, batch)
        new = self._new_products(records, mine, batch)
        *encoded, present = self.products.take(mine, new)
        source_tree, question_tree = self._trees
        questions = self._question_encodings(batch["question_ids"])
        ready = {
            "question_index": batch["question_index"],
            # A product of which nothing can be read is asked nothing.
            "question_valid": batch["question_valid"] & present.any(axis=1, keepdims=True),
            "answer_ids": batch["answer_ids"],
            "source_valid": {name: present[:, s] for s, name in enumerate(self._names)},
            "encoded_sources": jax.tree.unflatten(source_tree, encoded),
            "encoded_questions": jax.tree.unflatten(question_tree, questions),
        }
        return place_batch(ready, self._mesh, len(records))

    def flush(self) -> None:
        """Makes what is kept on a disk safe for the next start."""
        self.products.flush()

    # --- products ---------------------------------------------------------------------------------

    def _new_products(
        self, records: np.ndarray, mine: list[int], batch: Batch
    ) -> dict[int, Leaves]:
        """Encodes the products of this process that are not kept, and keeps those that fit."""
        missing, rounds = self._missing(records)
        place, size = {n: row for row, n in enumerate(mine)}, self._made_at_once
        size = size[jax.process_index()]
        given = [
            self._encode(batch, [place[n] for n in missing[first : first + size]], size)
            for first in range(0, rounds * size, size)
        ]
        new: dict[int, Leaves] = {}
        for number, first in enumerate(range(0, rounds * size, size)):
            leaves = [local_part(leaf) for leaf in jax.tree.leaves(given[number])]
            for i, record in enumerate(missing[first : first + size]):
                row = [leaf[i] for leaf in leaves]
                row.append(np.array([batch["source_valid"][n][place[record]] for n in self._names]))
                new[record] = row
                self.products.put(record, row, self._digest(batch, place[record], row))
        return new

    def _missing(self, records: np.ndarray) -> tuple[list[int], int]:
        """The products that this process is to encode, and in how many parts all of them do."""
        rounds, mine = 0, []
        for process, rows in self._rows.items():
            kept = self._kept_by[process]
            asked = dict.fromkeys(records[list(rows)].tolist())
            missing = [record for record in asked if record not in kept]
            rounds = max(rounds, -(-len(missing) // self._made_at_once[process]))
            kept.update(missing[: self.products.capacity - len(kept)])
            if process == jax.process_index():
                mine = missing
        return mine, rounds

    def _encode(self, batch: Batch, rows: list[int], size: int) -> Any:
        """Encodes some rows of a batch; fewer than `size` are filled up with the first."""
        rows = rows + [0] * (size - len(rows))
        part = {
            key: {name: value[rows] for name, value in batch[key].items()}
            for key in ("sources", "source_valid")
        }
        return self._encode_sources(self._frozen, place_batch(part, self._mesh, self._size))

    # --- what an earlier start kept ---------------------------------------------------------------

    def _check(self, mine: list[int], batch: Batch) -> None:
        """Compares what an earlier start kept with what the products say now, once for each."""
        for row, record in enumerate(mine):
            expected = self._unchecked.pop(record, None)
            if expected is None:
                continue
            if self._digest(batch, row, self.products.row(record)) != expected:
                self.products.discard()
                raise UserError(
                    f"encodings: what was kept of record {record} in {self.products.folder} is of "
                    "another text or image, or damaged; it is given up, and the same command "
                    "encodes all products anew"
                )

    def _digest(self, batch: Batch, row: int, kept: Leaves) -> int:
        """Of a product's sources and what is kept of it; only a disk needs it."""
        if not isinstance(self.products, RowsOnDisk):
            return 0
        found = hashlib.blake2b(digest_size=8)
        for name in self._names:
            found.update(np.ascontiguousarray(batch["sources"][name][row]))
        for leaf in kept:
            found.update(np.ascontiguousarray(leaf).view(np.uint8))
        return int.from_bytes(found.digest())

    # --- questions --------------------------------------------------------------------------------

    def _question_encodings(self, ids: np.ndarray) -> Leaves:
        """The encodings of a table of questions; every process has the whole of it."""
        names = [row.tobytes() for row in ids]
        place = {name: row for row, name in enumerate(names)}
        missing = [name for name in place if name not in self._questions]
        new: dict[bytes, Leaves] = {}
        size = self._question_rows
        for first in range(0, len(missing), size):
            chosen = missing[first : first + size]
            rows = [place[name] for name in chosen] + [0] * (size - len(chosen))
            table = place_batch({"question_ids": ids[rows]}, self._mesh)["question_ids"]
            encoded = self._encode_questions(self._frozen, table)
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(encoded)]
            for i, name in enumerate(chosen):
                new[name] = [leaf[i] for leaf in leaves]
                self._questions.put(name, new[name])
        return self._questions.take(names, new)


def _part_of(rows: int, parts: int) -> int:
    """How many of so many rows are encoded at a time: a multiple of the parts of a batch."""
    return parts * -(-rows // (_PARTS * parts))


def _row_shapes(tree: Any) -> list[tuple[tuple[int, ...], np.dtype]]:
    return [(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _programs(run: Run, size: int) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The compiled encoders of products and of questions."""
    trained = run.abstract[0].params  # which encoders have nothing of: shapes will do

    def sources(frozen: nnx.State, batch: Batch):
        model = nnx.merge(run.graph, trained, frozen)
        with using(run.mesh):
            return model.encode_sources(model.texts_that_are_there(batch))[0]

    def questions(frozen: nnx.State, ids: jax.Array):
        with using(run.mesh):
            return nnx.merge(run.graph, trained, frozen).encode_question(ids)[0]

    split = jax.jit(sources, out_shardings=rows_sharding(run.mesh, size))
    return split, jax.jit(questions, out_shardings=replicated(run.mesh))


def _kept_by_all(rows: KeptRows) -> dict[int, set[int]]:
    """What each process has kept from an earlier start."""
    mine = np.full(rows.capacity, -1, np.int32)
    mine[: len(rows)] = rows.names
    if jax.process_count() == 1:
        return {0: set(rows.names)}
    told = multihost_utils.process_allgather(mine)
    return {process: {int(n) for n in row if n >= 0} for process, row in enumerate(told)}
