"""The training loop: steps, log lines, evaluations, checkpoints, and resuming where it stopped."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import itertools
from typing import Any

from flax import nnx
import jax
import ml_collections
import numpy as np

from moemoe_jax.data.pipeline import eval_batches
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer, is_correct
from moemoe_jax.evaluation.metrics import evaluate
from moemoe_jax.experiment import ExperimentConfig, from_config_dict, read_settings, to_json
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.parallel.processes import barrier, connect, is_primary
from moemoe_jax.parallel.sharding import local_rows, place_batch, replicated
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.config import METRICS
from moemoe_jax.training.logging import MetricsWriter, Progress
from moemoe_jax.training.setup import Data, Run, first_state, open_data, plan, with_vocabulary
from moemoe_jax.training.step import TrainState, make_train_step
from moemoe_jax.training.timing import Ledger
from moemoe_jax.training.trainable import parameter_table
from moemoe_jax.workdir import WorkDir

Say = Callable[[str], None]


def train(mapping: ml_collections.ConfigDict, path: str, say: Say = print) -> dict[str, float]:
    """Trains until the last step, from where an earlier run with the same settings stopped.

    Args:
      mapping: the settings; see `experiment`.
      path: of the work directory.
      say: prints a line.

    Returns:
      the metrics of the last evaluation (empty without a validation split).

    Raises:
      UserError: for settings, data or a work directory that do not fit.
    """
    workdir = WorkDir(_local(path))
    if workdir.config.exists():
        read_settings(workdir.config)  # names what an older version of the code left there
    mapping = with_vocabulary(mapping, workdir)
    document = to_json(mapping)
    from_config_dict(mapping)  # refuses what is wrong before anything is written
    resuming = workdir.belongs_to(document)
    barrier("every process has looked at the work directory")
    data = open_data(mapping, workdir, resuming, say)
    config = from_config_dict(mapping, data.tokenizer.vocab_size)
    run = plan(config, data.train.steps_per_epoch)
    connect(run.mesh)
    checkpoints = Checkpoints(
        workdir.checkpoints,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )
    with checkpoints, contextlib.closing(data.train):
        start = workdir if resuming else None
        state, frozen, metrics = _start(config, run, data, checkpoints, start, say)
        if is_primary():
            data.tokenizer.save(workdir.tokenizer)
            workdir.write_attributes(data.train.attributes)
            workdir.claim(document)
        say(parameter_table(run.model, config.train.trainable))
        with MetricsWriter(workdir.path, resume_step=int(state.step) or None) as writer:
            trainer = _Trainer(config, run, data, checkpoints, writer, frozen, metrics)
            return trainer.run(state)


def _local(path: str):
    from pathlib import Path

    return Path(path).expanduser()


def _start(
    config: ExperimentConfig,
    run: Run,
    data: Data,
    checkpoints: Checkpoints,
    resuming: WorkDir | None,
    say: Say,
) -> tuple[TrainState, nnx.State, dict[str, float]]:
    """The state to go on from, the frozen parameters and the metrics of the last evaluation."""
    if resuming and checkpoints.latest_step() == 0:
        # An imported model: parameters alone, which the training starts from.
        return *first_state(config, run, say, resuming), {}
    if resuming and checkpoints.latest_step() is not None:
        state, frozen = run.abstract
        restored = checkpoints.restore_latest(_tree(state, frozen))
        data.train.set_state(restored.meta["data"])
        say(f"resuming at step {restored.step} of {run.total_steps}")
        fields = {k: v for k, v in restored.state.items() if k != "frozen"}
        return (
            dataclasses.replace(state, **fields),
            restored.state["frozen"],
            restored.meta["metrics"],
        )
    return *first_state(config, run, say), {}


def _tree(state: TrainState, frozen: nnx.State) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {k: v for k, v in fields.items() if v is not None} | {"frozen": frozen}


class _Trainer:
    """One run of the loop; what its parts share."""

    def __init__(
        self,
        config: ExperimentConfig,
        run: Run,
        data: Data,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        frozen: nnx.State,
        metrics: dict[str, float],
    ):
        self.config, self.plan, self.data = config, run, data
        self.checkpoints, self.writer, self.frozen = checkpoints, writer, frozen
        self.metrics = metrics
        self.ledger = Ledger()
        places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract[0])
        self.step = jax.jit(
            make_train_step(
                run.graph,
                run.optimizer,
                run.schedule,
                config.loss,
                mesh=run.mesh,
                seed=config.train.seed,
                accumulation=config.train.accumulation,
                ema_decay=config.optimizer.ema_decay,
            ),
            donate_argnums=0,
            out_shardings=(places, replicated(run.mesh)),
        )
        self.predictor = Predictor(run.graph, config, data.tokenizer, run.mesh)
        self.val = self._validation()

    def _validation(self):
        if self.data.val is None:
            return None
        return eval_batches(
            self.data.val,
            self.data.tokenizer,
            dataclasses.replace(
                self.config.data,
                products_per_batch=self.config.answer.products_per_batch,
                distinct_questions=0,
            ),
            rows=local_rows(self.plan.mesh, self.config.answer.products_per_batch),
            rejects=self.data.rejects,
        )

    def run(self, state: TrainState) -> dict[str, float]:
        """Takes the remaining steps."""
        settings, total = self.config.train, self.plan.total_steps
        every = settings.eval_every or self.plan.steps_per_epoch
        first = int(state.step)
        if first >= total:
            print(f"train: all {total} steps are done", flush=True)
            return self.metrics
        with Progress(total, first, log_every=settings.log_every) as progress:
            for number, batch in self._batches(first, total):
                with self.ledger.measure("compile" if number == first + 1 else "step"):
                    state, metrics = self.step(state, self.frozen, batch)
                    if number == first + 1:
                        jax.block_until_ready(metrics)
                last = number == total
                if number % settings.log_every == 0 or last:
                    self._log(number, metrics, progress)
                else:
                    progress.update(number)
                if number % every == 0 or last:
                    self._evaluate(number, state, progress)
                    self._save(number, state)
                elif settings.save_every and number % settings.save_every == 0:
                    self._save(number, state)
            self.checkpoints.wait()
            self._say_times(progress)
        return self.metrics

    def _batches(self, first: int, total: int) -> Iterator[tuple[int, Any]]:
        """Numbered batches on the devices; one is put there while a step runs."""
        placed = None
        for number in itertools.count(first + 1):
            if placed is None:
                placed = self._next()
            yield number, placed
            if number == total:
                return
            placed = self._next()

    def _next(self):
        with self.ledger.measure("input_wait"):
            batch = next(self.data.train)
        return place_batch(batch, self.plan.mesh, self.config.data.products_per_batch)

    def _log(self, number: int, metrics: dict[str, jax.Array], progress: Progress) -> None:
        names = [source.name for source in self.config.data.sources]
        with self.ledger.measure("step"):
            values = flatten_metrics(jax.device_get(metrics), names)
        done = self.config.train.log_every
        examples = done * self.config.data.products_per_batch
        times = self.ledger.interval(examples * self.config.data.questions_per_product)
        values |= {
            "speed/examples_per_second": times["examples_per_second"],
            "speed/input_wait_share": times.get("input_wait_share", 0.0),
            "epoch": number / self.plan.steps_per_epoch,
        }
        self.writer.write(number, values)
        progress.update(number, values["loss/total"], values["speed/examples_per_second"])
        if values["train/skipped_in_a_row"] >= self.config.train.max_skipped:
            raise UserError(
                f"the loss or a gradient was not finite for {values['train/skipped_in_a_row']:.0f} "
                f"steps in a row, up to step {number}; lower optimizer.learning_rate, or set "
                "optimizer.clip_norm; the last good checkpoint is kept"
            )

    def _evaluate(self, number: int, state: TrainState, progress: Progress) -> None:
        if self.val is None:
            return
        params = state.params if state.ema is None else state.ema
        with self.ledger.measure("evaluation"):
            answers = list(self._answers((params, self.frozen)))
        found = evaluate(
            answers, dataclasses.replace(self.config.evaluation, threshold_from="test")
        )
        self.metrics = {name: found[name] for name in METRICS if found[name] is not None}
        self.writer.write(number, {f"val/{k}": v for k, v in self.metrics.items()})
        shown = "  ".join(f"{k} {v:.4f}" for k, v in self.metrics.items())
        progress.note(f"val at step {number}: {shown}  ({len(answers)} questions)")
        samples = [self._sample(a) for a in _spread(answers, self.config.train.samples)]
        for line in samples:
            progress.note(f"  {line}")
        self.writer.text(number, "val/samples", "\n".join(f"- {line}" for line in samples))

    def _answers(self, params) -> Iterator[ScoredAnswer]:
        limit = self.config.train.eval_products
        size = self.config.answer.products_per_batch
        count = len(self.val) if not limit else max(1, -(-limit // size))
        return self.predictor(params, itertools.islice(self.val, count))

    def _sample(self, answer: ScoredAnswer) -> str:
        verdict = "right" if is_correct(answer, self.config.data.no_answer_text) else "wrong"
        gold = " | ".join(answer.golds or ()) or self.config.data.no_answer_text
        weights = " ".join(f"{k} {v:.2f}" for k, v in answer.source_weights.items())
        given = answer.answer or self.config.data.no_answer_text
        return (
            f"{verdict}: {answer.id} {answer.question!r} -> {given!r} "
            f"(gold {gold!r}, confidence {answer.confidence:.2f}, {weights})"
        )

    def _save(self, number: int, state: TrainState) -> None:
        with self.ledger.measure("save"):
            self.checkpoints.save(
                number,
                _tree(state, self.frozen),
                {"data": self.data.train.get_state() | {"step": number}},
                self.metrics,
            )

    def _say_times(self, progress: Progress) -> None:
        totals = self.ledger.totals()
        shown = "  ".join(f"{name} {seconds:.0f} s" for name, seconds in totals.items())
        progress.note(f"time: {shown}")
        notes = self.data.train.notes.counts()
        for event, count in notes.items():
            progress.note(f"note: {event}: {count}")


def _spread(items: list, count: int) -> list:
    """`count` of the items at even distances."""
    if not items or not count:
        return []
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def flatten_metrics(metrics: dict[str, np.ndarray], sources: list[str]) -> dict[str, float]:
    """Scalars by name: a vector over sources gets their names, any other its positions.

    Args:
      metrics: of a step; scalars, [S] over the sources, or [E] over experts.
      sources: the names of the S sources.
    """
    flat = {}
    for name, value in metrics.items():
        if np.ndim(value) == 0:
            flat[name] = float(value)
            continue
        keys = range(len(value)) if name.startswith("moe/") else sources
        flat |= {f"{name}/{key}": float(v) for key, v in zip(keys, value, strict=True)}
    return flat
