"""Answers any number of records into one file, and goes on where a killed job stopped.

Several processes deal the windows out and answer theirs alone, on their own devices; they meet when
the output is begun, and when all windows are answered, which the first one then joins.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import dataclasses
import glob
import itertools
import json
from pathlib import Path
import signal
import time
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.questions import question_text
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import check_spec, open_source
from moemoe_jax.inference.buckets import padding_is_read
from moemoe_jax.inference.calibration import Calibrator
from moemoe_jax.inference.evaluate import Say
from moemoe_jax.inference.fingerprint import fingerprint
from moemoe_jax.inference.loading import Loaded
from moemoe_jax.inference.parts import Parts, check_output, open_parts, share_parts, told
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.inference.stream import Stream, answer_windows, stream_data
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.workdir import WorkDir

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_PER_LINE = 60  # of progress, in a log


@dataclasses.dataclass
class Stopped:
    """Whether the job was asked to stop: the number of the signal, 0 for none."""

    number: int = 0


def predict(
    loaded: Loaded,
    workdir: WorkDir,
    spec: str,
    output: Path,
    *,
    name: str = "",
    ask: Sequence[str] = (),
    only: Sequence[str] = (),
    trained: Sequence[str] = (),
    calibrator: Calibrator | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> int:
    """Answers the questions about every record of a source.

    Args:
      loaded: the model; of several processes, on the devices of each (`loading.on_own_devices`).
      workdir: where it is from.
      spec: of the source.
      output: the file to write, `.jsonl` or `.parquet`; it appears when it is complete.
      name: of the model, written into the answers.
      ask: attributes to ask of every record, whether or not it says something about them.
      only: the attributes to ask at all; by default the run's.
      trained: the attributes that the model was trained on; questions of others are noted.
      calibrator: of the confidences.
      overwrite: start anew, and replace the output if there is one.
      say: prints a line.

    Returns:
      0, or the number of the signal that the job was stopped by, on any of its processes.

    Raises:
      UserError: the output exists or was begun with something else, too many records are rejected,
        or the disk is full.
    """
    config = loaded.config
    data = stream_data(config.data, config.answer, len(ask))
    data = dataclasses.replace(data, attributes=tuple(only) or data.attributes)
    asked = {"model name": name, "asked of every record": list(ask), "asked at all": list(only)}
    asked["calibration"] = None if calibrator is None else calibrator.to_json()
    parts = _open(output, fingerprint(loaded, workdir, spec, output, asked), overwrite)
    try:
        rejects = _rejects(output, data.max_reject_fraction, parts.resumed)
        with told(output):
            source = open_source(spec, None, rejects)
            if is_primary():
                parts.check_files(getattr(source, "files_digest", ""))
            barrier("the files of the input are compared")
        reader = ProductReader(
            source,
            loaded.tokenizer,
            data,
            rejects=rejects,
            notes=Notes(),
            labelled_only=False,
            ask=ask,
        )
        known = _with_questions(trained, data)
        stream = Stream(reader, config.model, config.answer, loaded.mesh.size, known)
        again = f", {len(parts.done)} of them answered already" if parts.done else ""
        windows = _number(stream.windows, "window")
        say(f"answering: {_number(len(source), 'record')} in {windows}{again}")
        if idle := parts.idle(stream.windows, len(source)):
            say(idle)
        predictor = Predictor(
            loaded.graph, config, loaded.tokenizer, loaded.mesh, name, calibration=calibrator
        )
        with _signals() as stopped, told(output):
            _answer(stream, parts, predictor, loaded.params, stopped, say)
        _report(stream, config.model, say)
        number = _of_all(stopped.number)
        parts.look()
        if is_primary():
            for line in parts.notes().lines():
                say(f"  {line}")
        if len(parts.done) < stream.windows:
            say(
                f"stopped by {signal.Signals(number).name}: {len(parts.done)} of "
                f"{windows} are answered; to go on, run the same without --overwrite"
            )
            return number
        barrier("all windows are counted")
        if not is_primary():
            return 0
        _take_over(rejects, rejects.path)
        rejects.check(max(rejects.seen, len(source)))
        count = parts.join(stream.windows)
    finally:
        parts.close()
    say(f"written: {_number(count, 'answer')} to {output}")
    if rejects.total:
        say(f"rejects: {rejects.total}, listed in {rejects.path}")
    return 0


def _open(output: Path, identity: dict[str, Any], overwrite: bool) -> Parts:
    """The parts of the output, which the first process opens for all."""
    parts = open_parts(output, identity, overwrite) if is_primary() else None
    resumed = bool(_of_all(parts is not None and parts.resumed))
    if parts is None:
        parts = share_parts(output, resumed)
    barrier("all know what is answered")
    return parts


def _of_all(number: int) -> int:
    """The largest number of any process; each waits for the others here."""
    if jax.process_count() == 1:
        return int(number)
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_paths(spec: str, output: Path, overwrite: bool = False) -> None:
    """Refuses, before a model is loaded, an input that is not there or an output that must not be.

    Args:
      spec: of the input, as `data.sources.open_source` takes it.
      output: the file to write.
      overwrite: as for `predict`.

    Raises:
      UserError: names what lies near the input, or what to do about the output.
    """
    check_spec(spec)
    check_output(output, overwrite)


def _rejects(output: Path, max_fraction: float, resumed: bool) -> Rejects:
    """The list of rejects beside the output; those of a job that goes on are counted again.

    While several processes answer, each but the first has a list of its own.
    """
    path = output.with_name(output.name + ".rejects.jsonl")
    if is_primary():
        rejects = Rejects(path, max_fraction, anew=not resumed)
        if resumed and path.exists():
            _count(rejects, path)
        _take_over(rejects, path, counted=resumed)
    barrier("the rejects so far are in one list")
    if not is_primary():
        rejects = Rejects(path, max_fraction, jax.process_index(), anew=True)
    return rejects


def _take_over(rejects: Rejects, path: Path, counted: bool = True) -> None:
    """Puts the lists that other processes have left into the first one's, or just removes them."""
    for other in sorted(path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}")):
        if counted:
            _count(rejects, other)
        other.unlink()


def _count(rejects: Rejects, path: Path) -> None:
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
            rejects.add(entry["file"], entry["line"], entry["reason"], entry.get("id"))
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a kill: it will be written again


def _with_questions(attributes: Sequence[str], data: DataConfig) -> set[str]:
    """Attributes, and the questions that ask for them."""
    template, templates = data.question_template, data.question_templates
    return {*attributes, *(question_text(name, template, templates) for name in attributes)}


def _answer(
    stream: Stream,
    parts: Parts,
    predictor: Predictor,
    params: tuple[nnx.State, ...],
    stopped: Stopped,
    say: Say,
) -> None:
    """Answers the windows that are left; the host reads and writes while the device works."""
    left = [number for number in range(stream.windows) if number not in parts.done]
    left = left[jax.process_index() :: jax.process_count()]
    progress = _Progress(len(parts.done) + len(left), len(parts.done), say)
    writing: Future | None = None
    works = stream.works(left)
    start = predictor.starter(params)
    with contextlib.closing(works), progress, ThreadPoolExecutor(1) as writer:
        given = itertools.takewhile(lambda _: not stopped.number, works)
        for window in answer_windows(given, start, predictor.collect):
            if writing is not None:
                writing.result()
            answers = list(itertools.chain.from_iterable(window.answers))
            noted = stream.notes.take(window.number)
            writing = writer.submit(parts.write, window.number, answers, noted)
            progress.step()
        if writing is not None:
            writing.result()


def _report(stream: Stream, model: MoEMoEConfig, say: Say) -> None:
    shapes = ", ".join(f"{p}x{k}x{u}" for p, k, u in sorted(stream.shapes))
    encoder = "; one for each number of questions encodes them" if model.question_encoder else ""
    say(
        f"  programs: {len(stream.shapes)} compiled, at most {stream.most_shapes} (products x text "
        f"length x distinct questions: {shapes or 'none'}){encoder}"
    )
    if model.has("text") and (reason := padding_is_read(model)):
        say(f"  texts are padded to one length: {reason}")


class _Progress:
    """A bar on a terminal, a line a minute in a log."""

    def __init__(self, total: int, done: int, say: Say):
        import tqdm

        self._bar = tqdm.tqdm(
            total=total, initial=done, desc="answering", unit="window", disable=None, leave=False
        )
        self._total, self._done, self._say = total, done, say
        self._told = time.monotonic()

    def step(self) -> None:
        """Tells that a window is answered."""
        self._done += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._told > _SECONDS_PER_LINE:
            self._told = time.monotonic()
            self._say(f"  {self._done} of {self._total} windows")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()


@contextlib.contextmanager
def _signals() -> Iterator[Stopped]:
    """Notes a request to stop; a second one ends the process at once."""
    stopped = Stopped()

    def stop(number: int, _) -> None:
        stopped.number = number
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)

    before = {one: signal.signal(one, stop) for one in _SIGNALS}
    try:
        yield stopped
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
