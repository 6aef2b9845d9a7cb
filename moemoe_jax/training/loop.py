"""The training loop: steps, log lines, evaluations, checkpoints, and stopping when asked to."""

from collections.abc import Iterator
import contextlib
import itertools
from pathlib import Path
import sys
import time
from typing import Any

from flax import nnx
import jax
import ml_collections

from moemoe_jax.errors import Stopped
from moemoe_jax.experiment import ExperimentConfig, from_config_dict, read_settings, to_json
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.processes import barrier, connect, is_primary
from moemoe_jax.parallel.sharding import place_batch
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.encode_once import EncodeOnce
from moemoe_jax.training.goodput import Goodput
from moemoe_jax.training.keep_encodings import keep_encodings
from moemoe_jax.training.logging import MetricsWriter, Progress
from moemoe_jax.training.mesh_check import check_mesh
from moemoe_jax.training.optimizer import check_warmup
from moemoe_jax.training.programs import Programs
from moemoe_jax.training.setup import Data, Run, Say, jitted_step, open_data, plan, with_vocabulary
from moemoe_jax.training.start import checkpoint_tree, evaluation_at, restore_or_initialise
from moemoe_jax.training.step import TrainState
from moemoe_jax.training.step_log import StepLog
from moemoe_jax.training.stopping import Stop
from moemoe_jax.training.timing import Ledger
from moemoe_jax.training.trainable import parameter_table
from moemoe_jax.training.validation import Validation
from moemoe_jax.training.watchdog import Watchdog
from moemoe_jax.workdir import WorkDir, fingerprint


def train(
    mapping: ml_collections.ConfigDict,
    path: str,
    say: Say = print,
    stop: Stop | None = None,
    began: float | None = None,
) -> dict[str, float]:
    """Trains until the last step, from where an earlier run with the same settings stopped.

    Args:
      mapping: the settings; see `experiment`.
      path: of the work directory.
      say: prints a line.
      stop: tells when to stop before the last step; by default nobody does.
      began: Unix time at which the job began, before this function was even imported.

    Returns:
      the metrics of the last evaluation (empty without a validation split).

    Raises:
      UserError: for settings, data or a work directory that do not fit.
      Stopped: when it was asked to stop, and all is saved.
    """
    began = time.time() if began is None else began
    ledger = Ledger(before=max(0.0, time.time() - began))
    with contextlib.ExitStack() as stack:
        with ledger.measure("startup"):
            trainer, state, goodput = _set_up(stack, mapping, path, ledger, began, say)
            step, total = int(state.step), trainer.plan.total_steps
            owed = trainer.owes_evaluation(step)
            if step >= total and not owed:
                goodput.withdraw()
                say(f"train: all {total} steps are done")
                return trainer.metrics
            writer = MetricsWriter(trainer.workdir.path, resume_step=step or None)
            stack.enter_context(writer)
        with Progress(total, step, log_every=trainer.config.train.log_every) as progress:
            trainer.run(state, owed, stop or Stop(), writer, goodput, progress)
    return trainer.metrics


def _set_up(
    stack: contextlib.ExitStack,
    mapping: ml_collections.ConfigDict,
    path: str,
    ledger: Ledger,
    began: float,
    say: Say,
) -> tuple["_Trainer", TrainState, Goodput]:
    """All that comes before the first step; what is to be closed goes on the stack."""
    workdir = WorkDir(Path(path).expanduser())
    if workdir.config.exists():
        read_settings(workdir.config)  # names what an older version of the code left there
    mapping = with_vocabulary(mapping, workdir)
    document = to_json(mapping)
    config = from_config_dict(mapping)  # refuses what is wrong before anything is written
    settings = config.train
    if settings.steps:
        check_warmup(config.optimizer, settings.steps)  # before a tokenizer is trained
    stack.enter_context(Watchdog(ledger, settings.stall_seconds, settings.stall_abort_seconds))
    check_mesh(config, make_mesh(config.mesh))
    resuming = workdir.belongs_to(document)
    barrier("every process has looked at the work directory")
    goodput = Goodput(workdir.goodput, ledger, began, write=is_primary())
    if resuming:
        stack.enter_context(goodput)
    data = open_data(mapping, workdir, resuming, say)
    stack.enter_context(contextlib.closing(data.train))
    config = from_config_dict(mapping, data.tokenizer.vocab_size)
    run = plan(config, data.train.steps_per_epoch)
    connect(run.mesh)
    validation = None if data.val is None else Validation(config, run, data)
    checkpoints = Checkpoints(
        workdir.checkpoints,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
        config=fingerprint(workdir.config.read_text() if resuming else document),
    )
    stack.enter_context(_closing(checkpoints))
    start = workdir if resuming else None
    ledger.beat()
    state, frozen = restore_or_initialise(config, run, data, checkpoints, start, say)
    if is_primary():
        data.tokenizer.save(workdir.tokenizer)
        workdir.write_attributes(data.train.attributes)
        workdir.claim(document)
    if not resuming:
        stack.enter_context(goodput)
    goodput.goes_on_from(int(state.step))
    say(parameter_table(run.model, config.train.trainable))
    encoded = keep_encodings(config, run, data.train, frozen, workdir, say)
    trainer = _Trainer(config, run, data, validation, workdir, checkpoints, frozen, encoded, ledger)
    return trainer, state, goodput


@contextlib.contextmanager
def _closing(checkpoints: Checkpoints) -> Iterator[None]:
    """Waits for what is being saved, also when the run has failed: that failure stays the cause."""
    try:
        yield
    except BaseException as cause:
        try:
            checkpoints.close()
        except Exception as error:
            if str(error) != str(cause):
                print(f"the save under way failed as well: {error}", file=sys.stderr, flush=True)
        raise
    checkpoints.close()


class _Trainer:
    """A run that is set up; what its parts share."""

    def __init__(
        self,
        config: ExperimentConfig,
        run: Run,
        data: Data,
        validation: Validation | None,
        workdir: WorkDir,
        checkpoints: Checkpoints,
        frozen: nnx.State,
        encoded: EncodeOnce | None,
        ledger: Ledger,
    ):
        self.config, self.plan, self.data, self.workdir = config, run, data, workdir
        self.validation = validation
        self.checkpoints, self.frozen, self.ledger = checkpoints, frozen, ledger
        self.encoded = encoded
        self.metrics: dict[str, float] = {}
        self.every = config.train.eval_every or run.steps_per_epoch
        self.step = jitted_step(config, run)
        self.programs = Programs(len(config.data.text_lengths))

    def _evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.every == 0 or step == self.plan.total_steps)

    def owes_evaluation(self, step: int) -> bool:
        """Whether the step to go on from was saved without its evaluation."""
        if self.validation is None or not self._evaluates(step):
            return False
        found = evaluation_at(self.workdir, step)
        self.metrics = found or {}
        return found is None

    def run(
        self,
        state: TrainState,
        owed: bool,
        stop: Stop,
        writer: MetricsWriter,
        goodput: Goodput,
        progress: Progress,
    ) -> None:
        """Takes the remaining steps, behind the evaluation that may be owed.

        Raises:
          Stopped: when `stop` says so, at the same step on all processes.
        """
        self.stop, self.writer, self.goodput, self.progress = stop, writer, goodput, progress
        first, total = int(state.step), self.plan.total_steps
        if stop.agreed() or (owed and not self._evaluate(first, state)):
            self._leave(first)
        log = StepLog(self.config, self.plan.steps_per_epoch, first, writer, progress, self.ledger)
        queued = None
        for number, batch in self._batches(first, total):
            new = self.programs.is_new(number, batch, progress.note)
            if number == first + 1:
                progress.note(self._outlook(first))
            told = progress.compiling(number) if new else contextlib.nullcontext()
            with told, self.ledger.measure("compile" if new else "step"):
                state, metrics = self.step(state, self.frozen, batch)
                # One step runs and one is queued, no more: who asks to stop must not wait for many.
                jax.block_until_ready(metrics if new else queued)
            queued = metrics
            stop.keep()
            log(number, metrics, last=number == total)
            goodput.update(number)
            self._pause(number, state)
        self._finish()

    def _outlook(self, first: int) -> str:
        """Which steps follow, when the next checkpoint comes, and how to have more of them."""
        every, total = self.config.train.save_every, self.plan.total_steps
        saves = [total, *(first - first % n + n for n in (self.every, every) if n)]
        more = "" if every else "; --config.train.save_every=N saves more often"
        return f"train: steps {first + 1} to {total}, the next checkpoint at {min(saves)}{more}"

    def _pause(self, number: int, state: TrainState) -> None:
        """What comes between two steps: evaluation, checkpoint, and the end when asked for."""
        evaluating, save_every = self._evaluates(number), self.config.train.save_every
        done = evaluating and not self.stop.agreed() and self._evaluate(number, state)
        stopping = self.stop.agreed()
        if evaluating or stopping or (save_every and number % save_every == 0):
            self._save(number, state, self.metrics if done else {})
        if stopping and not (done and number == self.plan.total_steps):
            self._leave(number)

    def _batches(self, first: int, total: int) -> Iterator[tuple[int, Any]]:
        """Numbered batches on the devices; one is put there while a step runs."""
        if first >= total:
            return
        placed = self._next(first)
        for number in itertools.count(first + 1):
            yield number, placed
            if number == total:
                return
            placed = self._next(number)

    def _next(self, done: int):
        """The next batch, behind so many steps, on the devices."""
        with self.ledger.measure("input_wait"):
            batch = next(self.data.train)
        if self.encoded is not None:
            with self.ledger.measure("encode"):
                return self.encoded(done, batch)
        return place_batch(batch, self.plan.mesh, self.config.data.products_per_batch)

    def _evaluate(self, number: int, state: TrainState) -> bool:
        """Evaluates, and shows what came out; False when a stop was asked for in the middle."""
        if self.validation is None:
            return True

        def leave() -> bool:
            self.ledger.beat()
            return self.stop.agreed()

        params = state.params if state.ema is None else state.ema
        with self.ledger.measure("evaluation"):
            answers = self.validation.answer((params, self.frozen), leave)
            if answers is None:
                self.progress.note(f"val at step {number}: left, to stop; it is done on resuming")
                return False
            self.metrics = self.validation.judge(answers)
        # Where it was owed, there is a checkpoint already. Ranked before the evaluation is on
        # record: a run that is killed in between owes it still.
        self.checkpoints.rank(number, self.metrics)
        values = {f"val/{k}": v for k, v in self.metrics.items()} | {"val/questions": len(answers)}
        self.writer.write(number, values)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in self.metrics.items())
        self.progress.note(f"val at step {number}: {shown}  ({len(answers)} questions)")
        samples = self.validation.samples(answers)
        for line in samples:
            self.progress.note(f"  {line}")
        self.writer.text(number, "val/samples", "\n".join(f"- {line}" for line in samples))
        return True

    def _save(self, number: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Saves; only the metrics of an evaluation of this very state go with it and rank it."""
        with self.ledger.measure("save"):
            self.checkpoints.save(
                number,
                checkpoint_tree(state, self.frozen),
                {"data": self.data.train.get_state() | {"step": number}},
                metrics,
            )
            if self.encoded is not None:
                self.encoded.flush()
        self.goodput.saved(number)

    def _leave(self, number: int) -> None:
        with self.ledger.measure("save"):
            self.checkpoints.wait()
        self.goodput.saved(number)
        self._say_times()
        saved = (
            f"saved as {self.workdir.checkpoints / str(number)}" if number else "nothing to save"
        )
        self.progress.note(
            f"train: stopped {self.stop.reason} after step {number} of {self.plan.total_steps}, "
            f"{saved}; the same command goes on from there"
        )
        raise Stopped(f"stopped {self.stop.reason} after step {number}")

    def _finish(self) -> None:
        with self.ledger.measure("save"):
            self.checkpoints.wait()
        self.goodput.saved(self.plan.total_steps)
        self._say_times()
        for line in self.data.train.notes.lines():
            self.progress.note(line)

    def _say_times(self) -> None:
        for line in self.goodput.lines():
            self.progress.note(line)
