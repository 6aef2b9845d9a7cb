r"""Answers a split, or any data with gold answers, and prints accuracy and Recall@90P.

    python -m launch.evaluate --workdir=runs/dense --split=test
    python -m launch.evaluate --workdir=runs/dense --input=other.jsonl
    python -m launch.evaluate --workdir=runs/dense --remove_sources=image
    python -m launch.evaluate --workdir=runs/dense --evaluation=bound=clopper_pearson
    python -m launch.evaluate --workdir=runs/dense --answer=beams=4

Writes eval/<split>/{metrics.json, answers.jsonl, report.html} into the work directory; what of
--input could not be used is listed in a rejects.jsonl beside them. Settings that --answer and
--evaluation change become part of the folder's name, so that results of other settings stay beside
them. Calibration is fitted anew for them, and the last one is kept: launch.predict with the same
--answer has calibrated scores then.
"""

from collections.abc import Sequence
import textwrap

from absl import flags

from launch import common, process
from moemoe_jax.evaluation.table import EvalConfig
from moemoe_jax.inference.config import AnswerConfig

_OF_PREDICT = ("window", "lengths")  # which answers a stream of records

common.define_workdir("The work directory of a trained model.")
flags.DEFINE_string("split", "test", "The split of the run's data: train, val or test.")
flags.DEFINE_string("input", "", "Other data with gold answers, in place of --split.")
flags.DEFINE_string("checkpoint", "best", "best, last or a step.")
flags.DEFINE_list("remove_sources", [], "Sources to take away from every product.")
common.define_changes("answer", AnswerConfig, "answering", "beams=4", omit=_OF_PREDICT)
common.define_changes(
    "evaluation",
    EvalConfig,
    "how answers are judged",
    "threshold_from=val,bound=clopper_pearson",
    omit=("no_answer_text",),
)
common.define_reject_limit()
common.define_processes()
flags.DEFINE_string("name", "", "The results' folder under eval/; by default from the flags.")


def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    common.join_processes()
    process.end_at_sigterm()
    process.trim_after_compilations()
    import jax

    from moemoe_jax.data.eval_batches import check_removal
    from moemoe_jax.data.rejects import Rejects
    from moemoe_jax.data.sources import check_spec, open_source
    from moemoe_jax.evaluation.columns import explain
    from moemoe_jax.evaluation.terminal import (
        format_evidence,
        format_means,
        format_table,
        format_thresholds,
    )
    from moemoe_jax.inference import evaluate, loading
    from moemoe_jax.workdir import WorkDir

    args = flags.FLAGS
    workdir = WorkDir.open(args.workdir)
    if args.input:
        check_spec(args.input)
    loaded = common.limited(loading.load(workdir, args.checkpoint))
    loaded = common.changed(loaded, "answer", args.answer, omit=_OF_PREDICT)
    loaded = common.changed(loaded, "evaluation", args.evaluation)
    print(f"model: step {loaded.step} of {workdir.path}", flush=True)
    check_removal(loaded.config.data, args.remove_sources)
    name = args.name or evaluate.results_name(
        args.input, args.split, args.remove_sources, [*args.answer, *args.evaluation]
    )
    limit, index = loaded.config.data.max_reject_fraction, jax.process_index()
    of_the_run = Rejects(workdir.rejects, limit, index)
    if args.input:
        path = workdir.evaluation(name) / workdir.rejects.name
        rejects = Rejects(path, limit, index, anew=True)
        source = open_source(args.input, None, rejects)
        if len(source.splits) > 1:
            print(
                f"note: {args.input} is judged whole, its splits {', '.join(source.splits)} "
                "together; name one of its files to judge that alone",
                flush=True,
            )
    else:
        rejects = of_the_run
        source = evaluate.open_split(loaded.config, args.split, rejects)
    calibrator, thresholds = evaluate.calibrate(loaded, workdir, of_the_run) or (None, None)
    answers = evaluate.answer_source(
        loaded,
        source,
        rejects,
        name=f"{workdir.path.name}@{loaded.step}",
        remove_sources=args.remove_sources,
        calibrator=calibrator,
        title=name,
    )
    metrics = evaluate.judge(answers, loaded.config, thresholds)
    evaluate.write_results(workdir, name, answers, metrics, loaded.config)
    print(format_table(metrics))
    print(textwrap.fill(explain(loaded.config.evaluation), 100))
    print(format_evidence(metrics))
    if chosen := format_thresholds(metrics):
        print(chosen)
    print(format_means(metrics))
    print(f"written: {workdir.evaluation(name)}/metrics.json, answers.jsonl, report.html")


if __name__ == "__main__":
    common.run(main)
