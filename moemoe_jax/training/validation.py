"""Evaluation between steps: the validation split answered and judged, or left to stop."""

from collections.abc import Callable, Iterator
import dataclasses
import itertools

from moemoe_jax.data.eval_batches import eval_batches
from moemoe_jax.evaluation.answers import ScoredAnswer, is_correct
from moemoe_jax.evaluation.metrics import evaluate
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.inference.questions import questions_compete
from moemoe_jax.parallel.sharding import local_rows
from moemoe_jax.training.config import METRICS
from moemoe_jax.training.setup import Data, Run


class Validation:
    """Answers the first products of the validation split with the parameters of the moment.

    Args:
      config: settings; `train`, `answer`, `data` and `evaluation` are used.
      run: what the steps share.
      data: of the run, with a validation split.
    """

    def __init__(self, config: ExperimentConfig, run: Run, data: Data):
        self._config = config
        self._predictor = Predictor(run.graph, config, data.tokenizer, run.mesh)
        size = config.answer.products_per_batch
        self._batches = eval_batches(
            data.val,
            data.tokenizer,
            dataclasses.replace(config.data, products_per_batch=size),
            one_table=not questions_compete(config.model),
            rows=local_rows(run.mesh, size),
            rejects=data.rejects,
        )
        limit = config.train.eval_products
        self._count = max(1, -(-limit // size)) if limit else len(self._batches)

    def answer(self, params, leave: Callable[[], bool]) -> list[ScoredAnswer] | None:
        """Answers; None when it was left before the end.

        Args:
          params: the states that, with the graph, make the model.
          leave: asked before each batch; once it is true, the evaluation is given up.
        """
        left = False

        def batches() -> Iterator:
            nonlocal left
            for batch in itertools.islice(self._batches, self._count):
                left = leave()
                if left:
                    return
                yield batch

        answers = list(self._predictor(params, batches()))
        return None if left else answers

    def judge(self, answers: list[ScoredAnswer]) -> dict[str, float]:
        """The metrics of `METRICS` that the answers have.

        They are ranked by confidence: `launch.evaluate` calibrates, once a model is trained.
        """
        settings = dataclasses.replace(
            self._config.evaluation, score="confidence", threshold_from="test"
        )
        found = evaluate(answers, settings)
        return {name: found[name] for name in METRICS if found[name] is not None}

    def samples(self, answers: list[ScoredAnswer]) -> list[str]:
        """A line each for `train.samples` of the answers."""
        return [self._sample(a) for a in _spread(answers, self._config.train.samples)]

    def _sample(self, answer: ScoredAnswer) -> str:
        nothing = self._config.data.no_answer_text
        verdict = "right" if is_correct(answer, nothing) else "wrong"
        gold = " | ".join(answer.golds or ()) or nothing
        weights = " ".join(f"{k} {v:.2f}" for k, v in answer.source_weights.items())
        return (
            f"{verdict}: {answer.id} {answer.question!r} -> {answer.answer or nothing!r} "
            f"(gold {gold!r}, confidence {answer.confidence:.2f}, {weights})"
        )


def _spread(items: list, count: int) -> list:
    """`count` of the items at even distances."""
    if not items or not count:
        return []
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]
