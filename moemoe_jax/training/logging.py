"""What a run leaves to read: metrics.jsonl, TensorBoard events, and a bar or lines for the eye.

`metrics.jsonl` is the record: one JSON object a line with `step`, `time` (Unix seconds) and flat
`name: float`. It is strict JSON: a number that is not finite is the string "nan", "inf" or "-inf".
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
import sys
import time
from typing import Any, TextIO

import jax

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """Reads metrics.jsonl; "nan" and "inf" are floats again, a line cut by a kill is left out."""
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.append({k: v if k == "step" else float(v) for k, v in row.items()})
    return rows


def _jsonable(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


class MetricsWriter:
    """Writes metrics of process 0 to `workdir`; on other processes every call does nothing.

    Args:
      workdir: gets metrics.jsonl and tensorboard/.
      resume_step: the step of the checkpoint that the run goes on from: what was written after it
        is dropped, so that no step appears twice. None starts the history anew.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int | None = None):
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        import tensorboardX

        path = pathlib.Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(path.parent / "tensorboard"),
            purge_step=0 if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line; the values are scalars (numbers, numpy or jax arrays of rank 0)."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": int(step), "time": time.time()}
        row |= {name: _jsonable(value) for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Puts a text (sample predictions, as Markdown) into TensorBoard."""
        if self._board is not None:
            self._board.add_text(name, text, step)

    def flush(self) -> None:
        """Pushes everything to disk."""
        if self._file is not None:
            self._file.flush()
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._board.close()
            self._file = self._board = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _keep_until(path: pathlib.Path, last_step: int | None) -> None:
    """Drops lines after `last_step` and cut lines, replacing the file in one move."""
    kept = []
    if path.exists() and last_step is not None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                step = json.loads(line)["step"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
            if step <= last_step:
                kept.append(line + "\n")
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, path)


class Progress:
    """Shows how far a run is: a bar on a terminal, plain lines on stdout in a log.

    Args:
      total_steps: of the whole run.
      start_step: where this process begins (after a resume).
      log_every: a plain line each so many steps, and one at the last step.
      terminal: draw a bar; by default when stderr, where the bar goes, is a terminal.
      stream: where plain lines go; stdout unless told otherwise.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        log_every: int = 100,
        terminal: bool | None = None,
        stream: TextIO | None = None,
    ):
        self._total, self._first = total_steps, start_step
        self._every = max(1, log_every)
        self._stream = stream or sys.stdout
        self._silent = jax.process_index() != 0
        self._began = time.monotonic()  # of the steps after `_first`
        self._bar = None
        if (sys.stderr.isatty() if terminal is None else terminal) and not self._silent:
            import tqdm

            self._bar = tqdm.tqdm(total=total_steps, initial=start_step, desc="train", unit="step")

    @contextlib.contextmanager
    def compiling(self, step: int) -> Iterator[None]:
        """Stands around a step that is compiled for: says so, and what it took.

        That does not count for the time that is left, nor does all that came before the first.
        """
        began = time.monotonic()
        self.note("train: compiling the training step ...")
        yield
        took = time.monotonic() - began
        self._began += took
        if step == self._first + 1:
            self._first, self._began = step, time.monotonic()
        if self._bar is not None:
            self._bar.unpause()
        self.note(f"train: compiled in {took:.0f} s, with step {step}")

    def update(
        self, step: int, loss: float | None = None, examples_per_second: float | None = None
    ) -> None:
        """Says that `step` steps are done; loss and rate are passed when they are known.

        The numbers are plain floats: fetching them from the device is the caller's decision, since
        it waits for the device.
        """
        if self._silent:
            return
        numbers = {
            name: f"{value:.4g}"
            for name, value in (("loss", loss), ("examples/s", examples_per_second))
            if value is not None
        }
        if self._bar is not None:
            if numbers:
                self._bar.set_postfix(numbers, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._every == 0 or step == self._total:
            parts = [f"train {step}/{self._total}"]
            parts += [f"{name} {value}" for name, value in numbers.items()]
            self._print("  ".join([*parts, f"left {self._left(step)}"]))

    def _left(self, step: int) -> str:
        done = step - self._first
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"

    def note(self, text: str) -> None:
        """Prints a line of its own without breaking the bar."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
