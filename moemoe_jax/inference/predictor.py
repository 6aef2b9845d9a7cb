"""Batches of products and questions to answers with confidence and source weights.

Shapes: P products, Q questions per product, S sources, N answers to a question, L answer tokens.
"""

from collections.abc import Callable, Iterable, Iterator
import functools

from flax import nnx
import jax
from jax.sharding import Mesh
import numpy as np

from moemoe_jax.data.batching import Batch
from moemoe_jax.data.eval_batches import Meta
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.evaluation.answers import Alternative, ScoredAnswer, is_abstention, normalise
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.beam import best_answers
from moemoe_jax.inference.calibration import Calibrator
from moemoe_jax.inference.confidence import sequence_confidence
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.decoding import END, decoded
from moemoe_jax.inference.questions import QuestionTables, encode_table
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.parallel.axes import using
from moemoe_jax.parallel.sharding import place_batch, replicated

Started = tuple[jax.Array, ...]


class Predictor:
    """Answers batches: a compiled program for each shape, and one for each of question tables.

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
        self._calibration, self._tokenizer = calibration, tokenizer
        # Answers repeat: a catalogue has few distinct values.
        self._decode = functools.lru_cache(maxsize=65536)(lambda ids: tokenizer.decode(ids).strip())
        self._run = jax.jit(
            functools.partial(answer_batch, graph, mesh, config.data.answer_length, config.answer)
        )
        # Any product may ask any question, so each device has the encodings of all of them.
        self._encode = jax.jit(
            functools.partial(encode_table, graph, mesh), out_shardings=replicated(mesh)
        )
        # Of several processes each gets all answers, so that all judge them alike.
        self._everywhere = jax.jit(lambda results: results, out_shardings=replicated(mesh))

    def __call__(
        self, params: tuple[nnx.State, ...], batches: Iterable[tuple[Batch, Meta]]
    ) -> Iterator[ScoredAnswer]:
        """Answers every question of the batches, in order.

        Args:
          params: the states that, with the graph, make the model.
          batches: from `data.eval_batches`; of several processes each passes its rows and gets the
            answers of all.
        """
        start, waiting = self.starter(params), None
        for batch, meta in batches:
            # The device works on this batch while the host writes out the one before.
            started = start(batch, len(meta)), meta
            if waiting is not None:
                yield from self.collect(*waiting)
            waiting = started
        if waiting is not None:
            yield from self.collect(*waiting)

    def starter(self, params: tuple[nnx.State, ...]) -> Callable[..., Started]:
        """Makes what sends the batches of a stream to the devices, and does not wait.

        Between the batches it keeps encodings of questions, and so the parameters: it is to be
        dropped with the stream.

        Args:
          params: as in `__call__`.

        Returns:
          `start(batch, products=None)`, whose results `collect` waits for. Of a batch, a process
          passes the rows of its own, and as `products` P, the rows of all processes; None: each
          passes all of them.
        """
        asks = self._config.model.question_encoder
        tables = QuestionTables(functools.partial(self._encode_table, params)) if asks else None

        def start(batch: Batch, products: int | None = None) -> Started:
            rest = {name: value for name, value in batch.items() if name != "question_ids"}
            placed = place_batch(rest, self._mesh, products)
            if tables is not None:
                placed["encoded_questions"] = tables(batch["question_ids"])
            return self._everywhere((*self._run(params, placed), placed["question_valid"]))

        return start

    def _encode_table(self, params: tuple[nnx.State, ...], ids: np.ndarray) -> Encoded:
        placed = place_batch({"question_ids": ids}, self._mesh)
        return self._encode(params, placed["question_ids"])

    def collect(self, results: Started, meta: Meta) -> Iterator[ScoredAnswer]:
        """Yields the answers of a batch that was started, in order."""
        ids, confidence, weights, valid = map(np.asarray, results)
        asked = [
            (p, q, e)
            for p, examples in enumerate(meta)
            for q, e in enumerate(examples)
            if valid[p, q]
        ]
        confidence = confidence.astype(np.float64).clip(0.0, 1.0)
        raw = np.array([confidence[p, q, 0] for p, q, _ in asked])
        attributes = [e.attribute or e.question for *_, e in asked]
        calibrated = None if self._calibration is None else self._calibration(raw, attributes)
        sources = [source.name for source in self._config.data.sources]
        for row, (p, q, example) in enumerate(asked):
            said, *others = (self._text(answer) for answer in ids[p, q])
            shares = np.round(weights[p, q].astype(np.float64), 6).tolist()
            yield ScoredAnswer(
                id=example.record_id,
                attribute=attributes[row],
                question=example.question,
                answer=said,
                confidence=float(raw[row]),
                calibrated=None if calibrated is None else float(calibrated[row]),
                source_weights=dict(zip(sources, shares, strict=True)),
                model=self._name,
                golds=example.answers,
                evidence=example.evidence,
                product_type=example.product_type,
                alternatives=self._alternatives(said, others, confidence[p, q, 1:]),
            )

    def _text(self, ids: np.ndarray) -> str | None:
        """What token ids [L] say; None for "no answer"."""
        text = self._decode(tuple(ids[ids > END].tolist()))
        return None if is_abstention(text, self._nothing) else text

    @functools.cached_property
    def _nothing(self) -> str:
        """How "no answer" comes back from its tokens: T5's own pieces lack the "<" of "<none>"."""
        data = self._config.data
        ids, _ = self._tokenizer.encode(data.no_answer_text, data.answer_length)
        return self._decode(tuple(ids[ids > END].tolist()))

    def _alternatives(
        self, said: str | None, others: list[str | None], confidence: np.ndarray
    ) -> tuple[Alternative, ...]:
        """The next best answers, each text once: different tokens may spell the same."""
        different = {}
        for text, sure in zip(others, confidence.tolist(), strict=True):
            if _key(text) != _key(said):
                different.setdefault(_key(text), Alternative(text, sure))
        return tuple(different.values())[: self._config.answer.alternatives]


def _key(text: str | None) -> str | None:
    return None if text is None else normalise(text)


def answer_batch(
    graph: nnx.GraphDef,
    mesh: Mesh,
    length: int,
    config: AnswerConfig,
    params: tuple[nnx.State, ...],
    batch: dict,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encodes a batch's sources, fuses and decodes: a pure function, to be jitted.

    Args:
      graph: of the model.
      mesh: that the program is for.
      length: L.
      config: how questions are answered.
      params: the states that, with the graph, make the model.
      batch: as `data.batching.collate` makes it, but for `question_ids`, in place of which it has
        `encoded_questions`, from `encode_table`; neither without a question encoder.

    Returns:
      ids, int32 [P, Q, N, L], and their confidence, float32 [P, Q, N], the best answer first and
      with alternatives the other beams; and the mean weight of each source over the tokens where
      it counts, float32 [P, Q, S].
    """
    model = nnx.merge(graph, *params)
    index, asked = batch["question_index"], batch["question_valid"]
    question = batch["encoded_questions"] if model.config.question_encoder else None
    with using(mesh):
        sources, _ = model.encode_sources(model.texts_that_are_there(batch))
        fused = model.fuse(question, index, sources, model.present(batch))
        found = best_answers(
            model,
            fused,
            model.question_vectors(question, index),
            asked,
            length,
            beams=config.beams,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
        )
    kept = config.beams if config.alternatives else 1
    ids, log_probs = found.ids[:, :, :kept], found.log_probs[:, :, :kept]
    sure = sequence_confidence(log_probs, decoded(ids, asked[..., None]), config.confidence)
    return ids, sure, fused.shares
