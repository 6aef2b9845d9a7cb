"""Batches of products and questions to answers with confidence and source weights."""

from collections.abc import Iterable, Iterator
import functools

from flax import nnx
import jax
from jax.sharding import Mesh
import numpy as np

from moemoe_jax.data.batching import Batch
from moemoe_jax.data.pipeline import Meta
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.evaluation.answers import ScoredAnswer, is_abstention
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.calibration import Calibrator
from moemoe_jax.inference.confidence import sequence_confidence
from moemoe_jax.inference.decoding import END, decoded, greedy
from moemoe_jax.parallel.axes import using
from moemoe_jax.parallel.sharding import place_batch, replicated


class Predictor:
    """Answers batches; one compiled program for all batches of a shape.

    Args:
      graph: of the model.
      config: settings; `answer` and `data` are used.
      tokenizer: turns token ids into text.
      mesh: where batches go.
      name: of the model, written into every answer.
      calibration: of the confidences, or None.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        config: ExperimentConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        name: str = "",
        calibration: Calibrator | None = None,
    ):
        self._config, self._mesh, self._name = config, mesh, name
        self._calibration = calibration
        # Answers repeat: a catalogue has few distinct values.
        self._decode = functools.lru_cache(maxsize=65536)(lambda ids: tokenizer.decode(ids).strip())
        self._run = jax.jit(
            functools.partial(
                answer_batch, graph, mesh, config.data.answer_length, config.answer.confidence
            )
        )
        # Of several processes each gets all answers, so that all judge them alike.
        self._everywhere = jax.jit(lambda results: results, out_shardings=replicated(mesh))

    def __call__(
        self, params: tuple[nnx.State, ...], batches: Iterable[tuple[Batch, Meta]]
    ) -> Iterator[ScoredAnswer]:
        """Answers every question of the batches, in order.

        Args:
          params: the states that, with the graph, make the model.
          batches: from `data.pipeline.eval_batches`; of several processes each passes its rows and
            gets the answers of all.
        """
        waiting = None
        for batch, meta in batches:
            # The device works on this batch while the host writes out the one before.
            placed = place_batch(batch, self._mesh, products=len(meta))
            results = self._run(params, placed)
            started = self._everywhere((*results, placed["question_valid"])), meta
            if waiting is not None:
                yield from self._collect(*waiting)
            waiting = started
        if waiting is not None:
            yield from self._collect(*waiting)

    def _collect(self, results: tuple[jax.Array, ...], meta: Meta) -> Iterator[ScoredAnswer]:
        ids, confidence, weights, valid = map(np.asarray, results)
        asked = [
            (p, q, e)
            for p, examples in enumerate(meta)
            for q, e in enumerate(examples)
            if valid[p, q]
        ]
        raw = np.array([confidence[p, q] for p, q, _ in asked], np.float64).clip(0.0, 1.0)
        attributes = [e.attribute or e.question for *_, e in asked]
        calibrated = None if self._calibration is None else self._calibration(raw, attributes)
        sources = [source.name for source in self._config.data.sources]
        for row, (p, q, example) in enumerate(asked):
            text = self._decode(tuple(ids[p, q][ids[p, q] > END].tolist()))
            nothing = is_abstention(text, self._config.data.no_answer_text)
            shares = np.round(weights[p, q].astype(np.float64), 6).tolist()
            yield ScoredAnswer(
                id=example.record_id,
                attribute=attributes[row],
                question=example.question,
                answer=None if nothing else text,
                confidence=float(raw[row]),
                calibrated=None if calibrated is None else float(calibrated[row]),
                source_weights=dict(zip(sources, shares, strict=True)),
                model=self._name,
                golds=example.answers,
                evidence=example.evidence,
                product_type=example.product_type,
            )


def answer_batch(
    graph: nnx.GraphDef,
    mesh: Mesh,
    length: int,
    confidence: str,
    params: tuple[nnx.State, ...],
    batch: dict,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encodes, fuses and decodes one batch: a pure function, to be jitted.

    Returns:
      ids, int32 [P, Q, L]; confidence, float32 [P, Q]; and the mean weight of each source over the
      tokens where it counts, float32 [P, Q, S].
    """
    model = nnx.merge(graph, *params)
    index, asked = batch["question_index"], batch["question_valid"]
    with using(mesh):
        question, sources, _ = model.encode(batch)
        fused = model.fuse(question, index, sources, model.present(batch))
        vectors = model.question_vectors(question, index)
        ids, log_probs = greedy(model, fused, vectors, asked, length)
    scores = sequence_confidence(log_probs, decoded(ids, asked), confidence)
    return ids, scores, fused.shares
