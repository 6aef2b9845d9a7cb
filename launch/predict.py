r"""Answers records without gold answers.

    python -m launch.predict --workdir=runs/moe --input=products.jsonl --output=answers.jsonl
    python -m launch.predict --workdir=runs/moe --input=folder --output=answers.parquet \
        --attributes=color,"sleeve type"

Each record's own questions and attributes are asked, and those of --attributes, of every record.
"""

from collections.abc import Sequence

from absl import flags

from launch import common

common.define_workdir("The work directory of a trained model.")
flags.DEFINE_string("input", None, "Records: a file or folder of any known format.", required=True)
flags.DEFINE_string("output", None, "Answers: .jsonl or .parquet.", required=True)
flags.DEFINE_list(
    "attributes",
    [],
    "Attributes to ask of every record; by default those that the model was trained on.",
)
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
flags.DEFINE_bool("overwrite", False, "Whether to replace an existing output.")


def main(argv: Sequence[str]) -> None:
    """Answers as the flags say."""
    del argv
    from pathlib import Path

    from moemoe_jax.data.rejects import Rejects
    from moemoe_jax.data.sources import open_source
    from moemoe_jax.errors import UserError
    from moemoe_jax.evaluation.answers import write_answers
    from moemoe_jax.inference import evaluate, loading
    from moemoe_jax.workdir import WorkDir

    args = flags.FLAGS
    output = Path(args.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--output is {args.output}; end it in .jsonl or .parquet")
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists; choose another --output or add --overwrite")
    workdir = WorkDir.open(args.workdir)
    attributes = [name.strip() for name in args.attributes] or workdir.attributes()
    _check_attributes(attributes, workdir)
    loaded = loading.load(workdir, args.checkpoint)
    print(f"model: step {loaded.step} of {workdir.path}", flush=True)
    rejects = Rejects(
        output.with_name(output.name + ".rejects.jsonl"), loaded.config.data.max_reject_fraction
    )
    calibration = loading.load_calibration(workdir, loaded.step)
    answers = evaluate.answer_source(
        loaded,
        open_source(args.input, None, rejects),
        rejects,
        name=f"{workdir.path.name}@{loaded.step}",
        ask=attributes,
        only=attributes if args.attributes else (),
        calibrator=calibration[0] if calibration else None,
        title="answering",
    )
    count = write_answers(output, answers)
    print(f"written: {count} answers to {output}")
    if rejects.total:
        print(f"rejects: {rejects.total}, listed in {rejects.path}")


def _check_attributes(attributes: Sequence[str], workdir) -> None:
    """Says so when an attribute is asked that the model never saw; it is asked all the same."""
    import difflib

    known = workdir.attributes()
    for name in attributes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            print(f"note: the model was not trained on {name!r}{hint}", flush=True)


if __name__ == "__main__":
    common.run(main)
