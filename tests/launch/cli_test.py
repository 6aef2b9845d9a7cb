"""The command line: help at once, and a line with the remedy for every mistake."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import pytest

from moemoe_jax.evaluation.table import EvalConfig
from moemoe_jax.inference.calibration import Calibrator, Sigmoid
from moemoe_jax.inference.config import AnswerConfig
from tests.launch.cli import ROOT, TINY, WHOLE_ANSWERS, environment, run

MODULES = (
    "compile_check",
    "evaluate",
    "export_hf",
    "import_hf",
    "predict",
    "prepare_data",
    "summary",
    "train",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory after two steps of the tiny config."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train", f"--config={TINY}", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def refused(done, *parts):
    """Asserts exit status 2 and one line on stderr that holds all parts."""
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    for part in parts:
        assert str(part) in lines[0]


def test_every_entry_point_is_tested():
    files = (ROOT / "launch").glob("*.py")
    assert {file.stem for file in files if "__main__" in file.read_text()} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_help_says_what_it_does_without_heavy_imports(module):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"launch.{module}", "--help"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    source = (ROOT / "launch" / f"{module}.py").read_text()
    first = source.removeprefix("r").removeprefix('"""').splitlines()[0]
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == first
    assert f"python -m launch.{module}" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not {"jax", "flax", "orbax.checkpoint", "tensorflow_datasets"} & imported


@pytest.mark.parametrize(
    ("module", "flags"),
    [("train", ("--config", "--workdir")), ("evaluate", ("--workdir", "--split"))],
)
def test_help_lists_the_flags(module, flags):
    text = run(module, "-h").stdout
    assert all(f"  {flag}" in text for flag in flags)


@pytest.mark.parametrize(
    ("module", "config", "changes"),
    [
        ("predict", AnswerConfig(), {}),
        # Numbers as the flag takes them; what follows from the data is not the user's to set.
        ("evaluate", EvalConfig(), {"topk": "5:10:15", "no_answer_text": None}),
        ("evaluate", AnswerConfig(), {"window": None, "lengths": None}),
    ],
)
def test_help_lists_the_settings_that_a_flag_changes_with_their_defaults(module, config, changes):
    told = " ".join(run(module, "--help").stdout.split())
    values = dataclasses.asdict(config) | changes
    settings = [f"{name}={value}" for name, value in values.items() if value is not None]
    assert len(settings) > 5 and ", ".join(settings) in told
    assert "no_answer_text" not in told


@pytest.mark.parametrize("module", MODULES)
def test_the_first_line_comes_before_anything_can_fail(module):
    done = run(module, "--no_such_flag=1")
    refused(done, f"{module}: ", "no_such_flag", "--help")
    assert done.stdout.splitlines() == [f"{module}: starting with --no_such_flag=1"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.train.epoch=3"], ["--config.train.epoch", "did you mean epochs?"]),
        (["--config.trian.epochs=3"], ["no trian in config", "did you mean train?"]),
        (["--config.train.epochs.x=3"], ["config.train.epochs is a value"]),
        (["--config.train.epochs=many"], ["--config.train.epochs is 'many'; give a whole number"]),
        (["--config.data.text_buckets=a"], ["data.text_buckets is 'a'; give a whole number"]),
        (["--config=configs/quickstrat.py"], ["no file", "did you mean configs/quickstart.py?"]),
        (["--config=configs/quickstart.py:wide"], ["configs/quickstart.py", "dense", "moe"]),
        (["--config=configs/table4.py:odd"], ["configs/table4.py", "'odd'", "decoder_even"]),
        (["--config"], ["--config has no value"]),
        (["extra"], ["'extra' is no flag", "--name=value"]),
        (["--wrkdir=x"], ["no flag --wrkdir; did you mean --workdir? (--help lists them)"]),
        (["--only=x"], ["no flag --only (--help"]),  # not absl's --only_check_args
        (["--config.data.source=fashion:no/folder"], ["no such data: no/folder"]),
        (["--config.data.source=fashion:configs"], ["configs holds no styles.csv", "name the"]),
        (["--config.data.source=fashin:folder"], ["'fashin'", "did you mean 'fashion'?"]),
        (["--config.data.text_length=100"], ["data.text_length 100", "16 image", "=96"]),
        (["--config.mesh.data=3"], ["mesh data=3", "there are 1"]),
        (["--config.init.work_dir=no/run"], ["no/run is no work directory", "train one first"]),
        (["--config.train.trainable=experts", WHOLE_ANSWERS], ["set model.moe_layers"]),
        (["--config.optimizer.warmup_steps=2"], ["warmup_steps 2", "set it to 1 or less"]),
    ],
)
def test_a_mistake_in_training_is_told_in_one_line_and_leaves_no_work_directory(
    tmp_path, arguments, parts
):
    workdir = tmp_path / "run"
    given = arguments if "--config" in arguments else [f"--config={TINY}", *arguments]
    refused(run("train", f"--workdir={workdir}", *given), "train: ", *parts)
    assert not (workdir / "config.json").exists()


def test_every_setting_is_listed_as_the_flag_that_sets_it(tmp_path):
    command = ("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--settings")
    done = run(*command, "--config.data.answer_length=7")
    assert done.returncode == 0, done.stderr
    _, *listed = done.stdout.splitlines()
    assert "--config.data.answer_length=7" in listed
    again = run(*command, *shlex.split("\n".join(listed), comments=True))
    assert again.stdout.splitlines()[1:] == listed
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_what_would_lie_where_and_leaves_nothing(tmp_path):
    done = run("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    table, _, summary = done.stdout.partition("\n\n")
    assert "decoder_embedding/table" in table
    assert "total, without activations" in summary
    assert not list(tmp_path.iterdir())


def test_what_must_be_given_is_asked_for_and_must_be_there(tmp_path):
    refused(run("train"), "--workdir is missing")
    refused(run("predict", "--workdir=x"), "is missing; add --")
    done = run("prepare_data", "--input=no.jsonl", f"--output={tmp_path / 'new'}")
    refused(done, "no such data: no.jsonl")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("import os\n\ndef get_config():\n    return os.no\n", ["line 4", "AttributeError"]),
        ("def get_config():\n    raise ValueError('pick\\none')\n", ["pick one"]),
        ("def get_config():\n    return {}\n", ["must return a ConfigDict"]),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, text, parts):
    path = tmp_path / "mine.py"
    path.write_text(text)
    refused(run("train", f"--workdir={tmp_path / 'run'}", f"--config={path}"), path, *parts)


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    refused(run("train", f"--config={TINY}", f"--workdir={workdir}"), workdir, "another path")


@pytest.mark.parametrize("module", ["evaluate", "predict"])
def test_answering_needs_a_work_directory(tmp_path, module, trained):
    given = [] if module == "evaluate" else ["--input=catalogue", f"--output={tmp_path}/a.jsonl"]
    missing = trained.with_name("tinny")
    done = run(module, f"--workdir={missing}", *given)
    refused(done, f"{missing} is no work directory", f"did you mean {trained}?")


def test_a_work_directory_of_other_settings_is_refused(trained):
    arguments = [f"--config={TINY}", f"--workdir={trained}", "--config.train.seed=7"]
    done = run("train", *arguments)
    refused(done, trained, "train.seed: 0 there, 7 now", "choose another --workdir")


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    config = json.loads((other / "config.json").read_text())
    config["model"]["text"]["d_ff"] = 32
    (other / "config.json").write_text(json.dumps(config))
    done = run("evaluate", f"--workdir={other}")
    refused(done, "does not fit the model", "(16, 16), not (16, 32)", "use the config")
    # The same for a model to start from.
    start = [f"--workdir={tmp_path / 'new'}", f"--config.init.work_dir={trained}"]
    changes = ("--config.model.text.d_ff=32", WHOLE_ANSWERS)
    done = run("train", f"--config={TINY}:experts", *start, *changes)
    refused(done, "init.work_dir has", "make the settings under model equal")


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--split=tset", ["'tset'", "train, val, test"]),
        ("--remove_sources=picture", ["cannot remove source 'picture'", "image, text"]),
        ("--remove_sources=image,text", ["leaves no source"]),
        ("--checkpoint=newest", ["'newest'", "best, last or a step"]),
        ("--checkpoint=99", ["no checkpoint of step 99"]),
        ("--input=no.jsonl", ["no such data: no.jsonl"]),
        ("--evaluation=bounds=none", ["evaluation.bounds does not", "did you mean bound?"]),
        ("--answer=window=8", ["'window=8'", "does not read"]),
    ],
)
def test_a_mistake_in_evaluation_is_told_before_any_work(trained, flag, parts):
    done = run("evaluate", f"--workdir={trained}", flag)
    refused(done, "evaluate: ", *parts)
    assert "calibrating" not in done.stdout


def test_predict_replaces_no_file_unasked(trained, tmp_path):
    output = tmp_path / "answers.jsonl"
    output.write_text("mine")
    given = [f"--workdir={trained}", "--input=catalogue:products=1"]
    refused(run("predict", *given, f"--output={output}"), output, "exists", "--overwrite")
    assert output.read_text() == "mine"
    refused(run("predict", *given, f"--output={tmp_path}/a.csv"), ".jsonl or .parquet")
    new = f"--output={tmp_path}/b.jsonl"
    refused(run("predict", *given, new, "--attributes=color,"), "--attributes has a blank name")
    done = run("predict", f"--workdir={trained}", "--input=no.jsonl", new)
    refused(done, "no such data: no.jsonl")
    assert "model:" not in done.stdout


def test_predict_changes_settings_of_answering(trained, tmp_path):
    output = tmp_path / "answers.jsonl"
    given = [f"--workdir={trained}", "--input=catalogue:products=1", f"--output={output}"]
    refused(run("predict", *given, "--answer=beam=2"), "answer.beam does not", "did you mean beams")
    refused(run("predict", *given, "--answer=size=2"), "answer.size does not", "keys are conf")
    fitted = {"step": 2, "calibrator": Calibrator("platt", Sigmoid()).to_json(), "thresholds": {}}
    (trained / "calibration.json").write_text(json.dumps(fitted))
    refused(run("predict", *given), "calibration.json is damaged (it has no 'settings'); delete it")
    fitted["settings"] = {"answer": AnswerConfig().scored_by()}
    (trained / "calibration.json").write_text(json.dumps(fitted))
    done = run("predict", *given, "--answer=beams=2,alternatives=1", "--attributes=color")
    (trained / "calibration.json").unlink()
    assert done.returncode == 0, done.stderr
    assert "no calibrated scores: those were fitted on answers with conf" in done.stdout
    (line,) = map(json.loads, output.read_text().splitlines())
    assert "calibrated" not in line
    assert line["source_weights"].keys() == {"image", "text"}
    assert len(line.get("alternatives", [])) <= 1
    assert "programs: 1 compiled" in done.stdout


def test_predict_tolerates_as_many_bad_records_as_it_is_told(trained, tmp_path):
    records = tmp_path / "new.jsonl"
    good = {"id": "1", "sources": {"title": "a red tee"}, "attributes": {"color": "red"}}
    records.write_text(json.dumps(good) + "\n{\n")
    given = [f"--workdir={trained}", f"--input={records}", "--attributes=color"]
    given.append(f"--output={tmp_path / 'answers.jsonl'}")
    refused(run("predict", *given), "1 of 2 records", "--max_reject_fraction")
    done = run("predict", *given, "--max_reject_fraction=0.5")
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (line["id"], line["attribute"]) == ("1", "color")


def test_an_evaluation_of_other_data_lists_its_rejects_beside_it(trained, tmp_path):
    records = tmp_path / "test.jsonl"
    good = {"id": "1", "sources": {"title": "a red tee"}, "attributes": {"color": "red"}}
    records.write_text(json.dumps(good) + "\n{\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({**good, "id": "2"}) + "\n")
    run_lists = trained / "rejects.jsonl"
    before = run_lists.read_text() if run_lists.exists() else None
    several = "its splits test, train together"
    for data, judged in ((records, "topk=3"), (tmp_path, "topk=5:10,bound=clopper_pearson")):
        given = ["--name=gold", f"--input={data}", "--max_reject_fraction=0.5"]
        given.append("--answer=confidence=min")
        done = run("evaluate", f"--workdir={trained}", *given, f"--evaluation={judged}")
        assert done.returncode == 0, done.stderr
        assert "thresholds chosen on the validation answers  R@90P" in done.stdout
        assert (several in done.stdout) == (data == tmp_path)
    # Another bound has other thresholds: they are fitted anew.
    assert "calibrating on val" in done.stdout
    fitted = json.loads((trained / "calibration.json").read_text())
    assert fitted["settings"]["answer"] == {"confidence": "min", "beams": 1}
    metrics = json.loads((trained / "eval" / "gold" / "metrics.json").read_text())
    assert (metrics["settings"]["bound"], metrics["settings"]["topk"]) == (
        "clopper_pearson",
        [5, 10],
    )
    listed = trained / "eval" / "gold" / "rejects.jsonl"
    assert f"listed in {listed}" in done.stdout
    (line,) = map(json.loads, listed.read_text().splitlines())
    assert (line["file"], line["line"]) == (str(records), 2)
    assert (run_lists.read_text() if run_lists.exists() else None) == before
    assert "R@90P is the share of answerable questions" in done.stdout


def test_summary_prints_a_line_an_evaluation(tmp_path):
    folder = tmp_path / "eval" / "test"
    folder.mkdir(parents=True)
    metrics = {"accuracy": 0.5, "recall_at_90p": 0.25, "by_evidence": {"text": {"accuracy": 1.0}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    done = run("summary", tmp_path)
    assert done.returncode == 0
    cells = done.stdout.splitlines()[-1].split()
    assert cells == [str(tmp_path), "test", "0.5000", "0.2500", "1.0000", "-", "-", "-"]
    (folder / "metrics.json").write_text('{"accuracy": 0')
    refused(run("summary", tmp_path), folder / "metrics.json", "evaluate again")
    refused(run("summary", "no/run"), "no evaluation in no/run", "launch.evaluate")
