r"""Measures against PyTorch and against ourselves, and prints one table of ratios.

    python -m benchmarks.run --out=figures.json
    python -m benchmarks.run --sizes=tiny --rows=train_1,train_6 --repetitions=3
    python -m benchmarks.run --list

    python -m benchmarks.run --sizes=base --rows=train_6,answer_38 --threads=16   # an accelerator

Both sides of a row are measured in turn in the same run, with the same threads, in float32 (base:
in bfloat16), on the accelerator where there is one. A ratio is that of the medians; its spread has
the smallest and the largest of neighbouring pairs. "≥" are speeds over theirs, "≤" costs as parts
of theirs. --out writes JSON, with every measurement, and the table as Markdown beside it, after
each row anew.

The peers are in requirements-test.txt; `pip install ctranslate2` adds the rows against CTranslate2.
Nothing else should run on the machine. docs/benchmarks.md says what each row measures.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import time

from absl import flags

from benchmarks import isolated, registry, table
from benchmarks.measure import Context
from launch import common
from moemoe_jax.errors import UserError

flags.DEFINE_list(
    "sizes", ["tiny", "small"], "Sizes of the models: tiny, small, and base for an accelerator."
)
flags.DEFINE_list("rows", [], "Rows to measure, by name; by default all.")
flags.DEFINE_integer("repetitions", 5, "Measurements of each side.", 1)
flags.DEFINE_integer("threads", 2, "That either side computes with.", 1)
flags.DEFINE_string("out", "", "A file.json for the figures; the table goes to file.md.")
flags.DEFINE_string(
    "fashion", "", 'Folder of "Fashion Product Images"; by default one in its form is made up.'
)
flags.DEFINE_bool("list", False, "List the rows, and stop.")


def main(argv: Sequence[str]) -> int:
    """Measures as the flags say; status 1 where a row could not be measured."""
    del argv
    args = flags.FLAGS
    if args.list:
        for row in registry.ROWS.values():
            print(f"{row.name:18} {row.bar!s:8} {row.what}, against {row.against}")
        return 0
    rows = [_known(name, registry.ROWS) for name in args.rows or registry.ROWS]
    for size in args.sizes:
        _known(size, dict.fromkeys(registry.SIZES))
    out = _out(args.out)
    _limit(args.threads)
    # Both sides of a row are in one process: neither may take the accelerator's memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    fashion = str(Path(args.fashion).expanduser().resolve()) if args.fashion else ""
    here = Context(args.sizes[0], args.repetitions, args.threads, fashion)
    device = isolated.call("device:kind", here)
    about, lines = table.machine(device, args.threads, args.repetitions), []
    for size in args.sizes:
        context = Context(size, args.repetitions, args.threads, fashion)
        for row in rows:
            begun = time.monotonic()
            lines.append(_measure(row, context))
            *_, ratio, spread, bar, verdict = lines[-1].cells()
            what = f"{ratio} ({spread}), bar {bar}, {verdict}" if ratio else lines[-1].failure
            print(f"{row.name} {size}: {what}  [{time.monotonic() - begun:.0f} s]", flush=True)
            if out is not None:
                table.write(lines, about, out)
    print()
    print(table.text(lines))
    return common.FAILED if any(line.samples is None for line in lines) else 0


def _known(name: str, known: dict):
    if name not in known:
        raise UserError(f"there is no {name!r}; choose from {', '.join(known)}")
    return known[name]


def _out(name: str) -> Path | None:
    """The file to write, if there is to be one.

    Raises:
      UserError: it is no JSON file, or its folder is not there.
    """
    if not name:
        return None
    out = Path(name).expanduser()
    if out.suffix != ".json":
        raise UserError(f"--out is {name}; end it in .json")
    if not out.parent.is_dir():
        raise UserError(f"--out is {name}, but there is no folder {out.parent}: make it first")
    return out


def _limit(threads: int) -> None:
    """Gives this process, and those that it starts, so many cores and threads.

    Raises:
      UserError: there are fewer.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if threads > len(cores):
            raise UserError(f"--threads={threads}, but there are {len(cores)} cores; ask for fewer")
        os.sched_setaffinity(0, cores[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def _measure(row: registry.Row, context: Context) -> table.Line:
    try:
        samples = isolated.call(row.measure, context, **row.arguments)
    except (UserError, RuntimeError) as error:
        return table.Line(row, context.size, None, str(error))
    return table.Line(row, context.size, samples)


if __name__ == "__main__":
    common.run(main)
