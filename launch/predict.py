r"""Answers records without gold answers.

    python -m launch.predict --workdir=runs/moe --input=products.jsonl --output=answers.jsonl
    python -m launch.predict --workdir=runs/moe --input=folder --output=answers.parquet \
        --attributes=color,"sleeve type"

Each record's own questions and attributes are asked, and those of --attributes, of every record.

Memory does not grow with the number of records. A job that was killed, or stopped by SIGTERM, goes
on where it was when the same command is given again, by as many processes as may be; what it had
answered lies beside the output until that is complete. A changed input, model or settings are
noticed and refused; of image files that records name, sizes and times of change are compared for
that, so copy such data with `cp -p` or `rsync -t` while a job is to go on.
"""

from collections.abc import Sequence
import functools

from absl import flags

from launch import common, process
from moemoe_jax.inference.config import AnswerConfig

common.define_workdir("The work directory of a trained model.")
common.define_processes()
flags.DEFINE_string("input", None, "Records: a file or folder of any known format.", required=True)
flags.DEFINE_string("output", None, "Answers: .jsonl or .parquet.", required=True)
flags.DEFINE_list(
    "attributes",
    [],
    "Attributes to ask of every record, besides its own questions; by default those that the model "
    "was trained on.",
)
common.define_reject_limit()
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
common.define_changes("answer", AnswerConfig, "answering", "beams=4,alternatives=3")
flags.DEFINE_bool(
    "overwrite",
    False,
    "Whether to start anew, every time, and to replace an existing output at the end.",
)


def main(argv: Sequence[str]) -> int:
    """Answers as the flags say; the status is 128 and the signal's number where one stopped it."""
    del argv
    common.join_processes()
    process.end_at_sigterm()
    process.trim_after_compilations()
    from pathlib import Path

    from moemoe_jax.errors import UserError
    from moemoe_jax.inference import loading
    from moemoe_jax.inference.predict import check_paths, predict
    from moemoe_jax.workdir import WorkDir

    args = flags.FLAGS
    output = Path(args.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--output is {args.output}; end it in .jsonl or .parquet")
    workdir = WorkDir.open(args.workdir)
    check_paths(args.input, output, args.overwrite)
    attributes = [name.strip() for name in args.attributes] or workdir.attributes()
    if not all(attributes):
        raise UserError("--attributes has a blank name; write it as --attributes=color,material")
    _check_attributes(attributes, workdir)
    run = common.limited(loading.on_own_devices(loading.load(workdir, args.checkpoint)))
    loaded = common.changed(run, "answer", args.answer)
    print(f"model: step {loaded.step} of {workdir.path}", flush=True)
    say = functools.partial(print, flush=True)
    calibrator = loading.calibrator_for(run, workdir, loaded.config.answer, say)
    stopped = predict(
        loaded,
        workdir,
        args.input,
        output,
        name=f"{workdir.path.name}@{loaded.step}",
        ask=attributes,
        only=attributes if args.attributes else (),
        trained=workdir.attributes(),
        calibrator=calibrator,
        overwrite=args.overwrite,
        say=say,
    )
    return 128 + stopped if stopped else 0


def _check_attributes(attributes: Sequence[str], workdir) -> None:
    """Says so when an attribute is asked that the model never saw; it is asked all the same."""
    import difflib

    known = workdir.attributes()
    if not known:
        print("note: the model was not trained on any attribute yet", flush=True)
        return
    for name in attributes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            print(f"note: the model was not trained on {name!r}{hint}", flush=True)


if __name__ == "__main__":
    common.run(main)
