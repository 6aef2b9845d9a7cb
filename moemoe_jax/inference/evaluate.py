"""Answers a split, judges the answers and writes what a person and a program read."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import re
from typing import Any

import numpy as np

from moemoe_jax.data.eval_batches import eval_batches
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource, open_source
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer, is_abstention, is_correct, write_answers
from moemoe_jax.evaluation.metrics import evaluate, fit_thresholds
from moemoe_jax.evaluation.report import write_report
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.calibration import Calibrator, fit_calibrator
from moemoe_jax.inference.loading import (
    Calibration,
    Loaded,
    load_calibration,
    save_calibration,
)
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.inference.questions import questions_compete
from moemoe_jax.parallel.processes import is_primary
from moemoe_jax.parallel.sharding import local_rows
from moemoe_jax.workdir import WorkDir, write_atomically

Say = Callable[[str], None]


def open_split(config: ExperimentConfig, split: str, rejects: Rejects) -> RecordSource:
    """Opens a split of the run's data: as the source has it, or cut by hash of the id."""
    data = config.data
    return open_source(
        data.source,
        split,
        rejects,
        fractions=data.split_fractions,
        split_seed=data.split_seed,
    )


def answer_source(
    loaded: Loaded,
    source: RecordSource,
    rejects: Rejects,
    *,
    name: str = "",
    remove_sources: Sequence[str] = (),
    calibrator: Calibrator | None = None,
    title: str = "answering",
    say: Say = print,
) -> list[ScoredAnswer]:
    """Answers the questions about every record of a source, with a progress bar on a terminal.

    Args:
      loaded: the model.
      source: the records.
      rejects: where what cannot be used goes.
      name: of the model, written into the answers.
      remove_sources: names of sources to take away from every product.
      calibrator: of the confidences.
      title: of the progress bar.
      say: prints a line.
    """
    import tqdm

    config = loaded.config
    data = dataclasses.replace(config.data, products_per_batch=config.answer.products_per_batch)
    notes = Notes()
    batches = eval_batches(
        source,
        loaded.tokenizer,
        data,
        remove_sources,
        one_table=not questions_compete(config.model),
        rows=local_rows(loaded.mesh, data.products_per_batch),
        rejects=rejects,
        notes=notes,
    )
    predictor = Predictor(
        loaded.graph, config, loaded.tokenizer, loaded.mesh, name, calibration=calibrator
    )
    say(f"{title}: {batches.questions} questions about {batches.products} products")
    hidden = None if is_primary() else True  # None: where stderr is no terminal
    shown = tqdm.tqdm(batches, desc=title, unit="batch", disable=hidden, leave=False)
    answers = list(predictor(loaded.params, shown))
    for line in notes.lines():
        say(f"  {line}")
    if rejects.total:
        say(f"  rejects so far: {rejects.total}, listed in {rejects.path}")
    return answers


def calibrate(loaded: Loaded, workdir: WorkDir, rejects: Rejects, say: Say = print):
    """Fits calibration and thresholds on the validation split, where they are not kept already.

    What was fitted last is kept in the work directory: for one checkpoint, and for the settings
    that it depends on.

    Returns:
      the calibrator and the thresholds, or None where the data have no validation split.

    Raises:
      UserError: there is no validation split, and the settings of evaluation need one.
    """
    config = loaded.config
    settings = _fitted_for(config)
    found = load_calibration(workdir, loaded.step)
    if found is not None and found.settings == settings:
        return found.calibrator, found.thresholds
    if config.data.val_fraction == 0:
        for name, value in (("threshold_from", "val"), ("score", "calibrated")):
            if getattr(config.evaluation, name) == value:
                raise UserError(
                    f"evaluation.{name}={value} needs validation records, and the run has none "
                    "(data.val_fraction=0); choose another, or train with some"
                )
        return None
    source = open_split(config, "val", rejects)
    answers = answer_source(loaded, source, rejects, title="calibrating on val", say=say)
    said = [a for a in answers if a.golds is not None]
    given = [a for a in said if not is_abstention(a.answer, config.data.no_answer_text)]
    calibrator = fit_calibrator(
        np.array([a.confidence for a in given]),
        np.array([is_correct(a, config.data.no_answer_text) for a in given], bool),
        [a.attribute for a in given],
        config.calibration,
    )
    if len(given) < config.calibration.min_count:
        say(
            f"  note: calibrated on {len(given)} answers, fewer than the "
            f"{config.calibration.min_count} of calibration.min_count: calibrated scores mean "
            "little; more validation records (data.val_fraction) make them mean more"
        )
    scored = [
        dataclasses.replace(a, calibrated=float(c))
        for a, c in zip(
            said,
            calibrator(np.array([a.confidence for a in said]), [a.attribute for a in said]),
            strict=True,
        )
    ]
    thresholds = fit_thresholds(scored, config.evaluation)
    if is_primary():
        save_calibration(workdir, loaded.step, Calibration(calibrator, thresholds, settings))
    return calibrator, thresholds


def _fitted_for(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that calibration and thresholds depend on, of those that can be changed.

    Others, such as `evaluation.topk`, are free to change without fitting anew.
    """
    names = ("score", "group_by", "bound", "bound_delta")
    return {
        "answer": config.answer.scored_by(),
        "evaluation": {name: getattr(config.evaluation, name) for name in names},
    }


def judge(answers: list[ScoredAnswer], config: ExperimentConfig, thresholds) -> dict[str, Any]:
    """The metrics of a split.

    Args:
      answers: to its questions.
      config: says how they are judged.
      thresholds: of the validation split; None where there is none.

    Raises:
      UserError: nobody said what would have been right.
    """
    if not any(answer.golds is not None for answer in answers):
        raise UserError(
            f"none of the {len(answers)} questions has a gold answer: give data that have some, or "
            "answer these by launch.predict"
        )
    return evaluate(answers, config.evaluation, thresholds)


def results_name(
    given: str, split: str, removed: Sequence[str] = (), changed: Sequence[str] = ()
) -> str:
    """What the results' folder is called: not hidden, and under eval/ whatever was `given`.

    Answers that are judged by `changed` settings do not replace those judged as the run says.
    """
    what = re.sub(r"[^\w.-]+", "_", given).strip("._") or "input" if given else split
    settings = [re.sub(r"[^\w.]+", "_", setting) for setting in changed]
    return "-with-".join(["-without-".join([what, *removed]), *settings])


def write_results(
    workdir: WorkDir,
    split: str,
    answers: list[ScoredAnswer],
    metrics: dict[str, Any],
    config: ExperimentConfig,
) -> None:
    """Writes `eval/<split>/`: metrics.json, answers.jsonl, report.html; the first process does."""
    if not is_primary():
        return
    folder = workdir.evaluation(split)
    write_answers(folder / "answers.jsonl", answers)
    write_report(
        folder / "report.html",
        answers,
        metrics,
        title=f"{workdir.path.name}: {split}",
        config=config.evaluation,
    )
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
