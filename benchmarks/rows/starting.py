"""The start of a training, in seconds from its process to the end of its first step."""

from pathlib import Path
import sys
import tempfile

from benchmarks.isolated import run_quietly
from benchmarks.measure import Context, Samples
from moemoe_jax.training.goodput import read_starts

_PHASES = ("startup", "input_wait", "compile")  # of goodput.json, up to the first step's end


def second_start(context: Context) -> Samples:
    """A second start with the compiled programs that a first one kept; both from nothing else.

    Each has a work directory of its own, so both read the data, train a tokenizer and draw their
    parameters, and what differs is the compilation.
    """
    first, second = [], []
    for _ in range(context.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_seconds(context.size, Path(folder), "first"))
            second.append(_seconds(context.size, Path(folder), "second"))
    return Samples("s", second, first)


def _seconds(size: str, folder: Path, name: str) -> float:
    workdir = folder / name
    run_quietly(
        [
            sys.executable,
            "-m",
            "launch.train",
            f"--config=benchmarks/sizes.py:{size}",
            f"--workdir={workdir}",
            "--config.train.steps=1",
        ],
        {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
    )
    (start,) = read_starts(workdir / "goodput.json")
    return sum(start.seconds.get(phase, 0.0) for phase in _PHASES)
