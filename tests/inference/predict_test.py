"""Killed anywhere, a prediction goes on and ends with the same bytes."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import types

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import read_answers
from moemoe_jax.inference import parts as parts_module
from moemoe_jax.inference import predict as predict_module
from moemoe_jax.inference.calibration import Calibrator, Sigmoid
from moemoe_jax.inference.loading import Loaded
from moemoe_jax.inference.parts import Parts, open_parts
from moemoe_jax.workdir import WorkDir
from tests.inference.numbers import ASK, SETTINGS, Numbers, mesh, predictor, weights, write
from tests.training.full_disk import files_of_at_most

COUNT, BAD = 45, (7, 31)
FINGERPRINT = {"input": "1", "weights": "2", "tokenizer": "3", "settings": {"beams": 4}}


class Killed(BaseException):
    """What no handler catches."""


@pytest.fixture(scope="module")
def compiled():
    return predictor()


@pytest.fixture
def job(compiled, tmp_path, monkeypatch):
    """Answers `COUNT` records into a file of that name: `job("a.jsonl")`; two are rejects."""
    monkeypatch.setattr(predict_module, "Predictor", lambda *_, **__: compiled)
    graph, params = weights()
    workdir = WorkDir(tmp_path / "run")
    workdir.tokenizer.mkdir(parents=True)
    (workdir.tokenizer / "pieces").write_text("0 1 2")
    write(tmp_path / "in.jsonl", COUNT, BAD)
    data = dataclasses.replace(SETTINGS.data, max_reject_fraction=0.2)
    config = dataclasses.replace(SETTINGS, data=data)

    def run(name="a.jsonl", *, config=config, ask=ASK, **options):
        loaded = Loaded(config, Numbers(), graph, (params,), mesh(), step=3)
        said = []
        status = predict_module.predict(
            loaded, workdir, str(tmp_path / "in.jsonl"), tmp_path / name,
            name="tiny@3", ask=ask, say=said.append, **options,
        )  # fmt: skip
        return status, "\n".join(said)

    run.folder, run.config = tmp_path, config
    return run


def written(job, name="a.jsonl"):
    path = job.folder / name
    assert not (job.folder / f".{name}.parts").exists()
    assert sorted(p.name for p in job.folder.iterdir() if name in p.name) == [
        name, f"{name}.rejects.jsonl",
    ]  # fmt: skip
    return path.read_bytes()


@pytest.fixture
def unbroken(job):
    status, said = job("unbroken.jsonl")
    assert status == 0
    assert "86 answers" in said  # of 43 records
    assert "rejects: 2" in said
    assert "programs: " in said
    return written(job, "unbroken.jsonl")


def kill_at_part(number, half):
    def write(self, window, answers, noted):
        if window == number:
            if half:
                self._path(window).with_suffix(".tmp").write_text('{"id": "r')
            raise Killed
        real(self, window, answers, noted)

    real = Parts.write
    return write


@pytest.mark.parametrize("half", [False, True])
def test_killed_while_answering_it_goes_on_with_the_next_window(job, unbroken, monkeypatch, half):
    for number in (0, 2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(Parts, "write", kill_at_part(number, half))
            with pytest.raises(Killed):
                job()
        assert not (job.folder / "a.jsonl").exists()
    status, said = job()
    assert status == 0
    assert "5 windows, 4 of them answered already" in said
    assert "rejects: 2" in said
    assert written(job) == unbroken
    rejects = (job.folder / "a.jsonl.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in rejects] == ["r7", "r31"]


def test_what_was_noted_is_of_the_whole_job_whoever_did_it(job, monkeypatch):
    path = job.folder / "in.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[::5]:
        record["sources"] = {"title": "2 " * 50, "remark": "3"}
        record["questions"] = [{"question": "4 " * 50}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    notes = []
    for name, kills in (("straight.jsonl", ()), ("killed.jsonl", (1, 3, 4))):
        for number in kills:
            with monkeypatch.context() as patch:
                patch.setattr(Parts, "write", kill_at_part(number, False))
                with pytest.raises(Killed):
                    job(name, trained=ASK)
        said = job(name, trained=ASK)[1].splitlines()
        # Which record of a window is the example, its threads decide.
        noted = [re.sub(r"\(.*?\)|, such.*", "", line) for line in said if "note: " in line]
        notes.append(noted)
    assert notes[0] == notes[1]
    assert notes[0] == [
        "  note: question truncated : 1",
        "  note: questions in words, beside the attributes that the model was trained on: 9",
        "  note: records without source 'description' , but with others: 9",
        "  note: source 'title' truncated : 9",
    ]


@pytest.mark.parametrize("moment", ["before the move", "behind the move"])
def test_killed_at_the_end_it_ends_again(job, unbroken, monkeypatch, moment):
    @contextlib.contextmanager
    def replacing(path):
        with real(path) as temporary:
            yield temporary
            if moment == "before the move":
                raise Killed

    def kill(*_):
        raise Killed

    real = parts_module.replacing
    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "replacing", replacing)
        patch.setattr(parts_module.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            job()
    status, said = job()
    assert status == 0
    assert "5 of them answered already" in said
    assert "0 compiled" in said
    assert written(job) == unbroken


def test_a_signal_stops_it_between_batches_and_nothing_is_lost(job, unbroken, monkeypatch):
    real = Parts.write

    def write_and_stop(self, window, answers, noted):
        real(self, window, answers, noted)
        if window == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", write_and_stop)
        status, said = job()
    assert status == signal.SIGTERM
    assert "stopped by SIGTERM: " in said
    assert "run the same" in said
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (job.folder / "a.jsonl").exists()
    assert job()[0] == 0
    assert written(job) == unbroken


def test_parquet_holds_the_same_answers(job, unbroken, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", kill_at_part(3, True))
        with pytest.raises(Killed):
            job("a.parquet")
    job("a.parquet")
    job("b.parquet")
    assert written(job, "a.parquet") == written(job, "b.parquet")
    lines = list(read_answers(job.folder / "unbroken.jsonl"))
    assert list(read_answers(job.folder / "a.parquet")) == lines


def begun(job, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", kill_at_part(2, False))
        with pytest.raises(Killed):
            job()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("input", "another input: "),
        ("tokenizer", "another tokenizer: "),
        ("ask", r"other settings \(asked of every record: \['1 2', '3'\] there, \['1 2'\] now\): "),
        ("beams", r"other settings \(answer.beams: 1 there, 2 now\): "),
        ("calibrator", r"other settings \(calibration: None there, {'method': .*} now\): "),
    ],
)
def test_with_something_else_it_does_not_go_on(job, monkeypatch, what, told):
    begun(job, monkeypatch)
    options = {}
    if what == "input":
        write(job.folder / "in.jsonl", COUNT + 1, BAD)
    elif what == "tokenizer":
        (job.folder / "run" / "tokenizer" / "pieces").write_text("0 2 1")
    elif what == "ask":
        options["ask"] = ASK[:1]
    elif what == "beams":
        answer = dataclasses.replace(job.config.answer, beams=2)
        options["config"] = dataclasses.replace(job.config, answer=answer)
    else:
        options["calibrator"] = Calibrator("platt", Sigmoid())
    with pytest.raises(UserError, match=f"begun with {told}.*--overwrite to start anew"):
        job(**options)
    status, said = job(overwrite=True, **options)
    assert status == 0
    assert "answered already" not in said


def test_with_another_image_it_does_not_go_on(job, monkeypatch):
    path, image = job.folder / "in.jsonl", job.folder / "images" / "a.jpg"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[20]["sources"]["image"] = "images/a.jpg"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    image.parent.mkdir()
    image.write_bytes(b"of one size")
    begun(job, monkeypatch)
    time = image.stat().st_mtime_ns
    os.utime(image, ns=(time, time + 1000))
    with pytest.raises(UserError, match=r"other files .*such as images \(their sizes or times of"):
        job()
    os.utime(image, ns=(time, time))
    assert "2 of them answered already" in job()[1]


def test_an_output_that_is_there_is_replaced_only_when_told(job, monkeypatch):
    output = job.folder / "a.jsonl"
    output.write_text("mine")
    with pytest.raises(UserError, match=r"a\.jsonl exists; choose another --output"):
        job()
    assert not (job.folder / ".a.jsonl.parts").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", kill_at_part(2, False))
        with pytest.raises(Killed):
            job(overwrite=True)
    assert output.read_text() == "mine"
    assert "2 of them answered already" in job()[1]  # it was begun with leave to replace it
    assert len(written(job).splitlines()) == 86


@pytest.mark.parametrize(
    ("processes", "line"),
    [
        (5, None),
        (6, "note: 5 windows for 6 processes: 1 idle; --answer=window=7 makes more"),
        (50, "note: 5 windows for 50 processes: 45 idle"),  # fewer records than processes
    ],
)
def test_processes_that_have_nothing_to_do_are_told_of(job, monkeypatch, processes, line):
    there = types.SimpleNamespace(process_count=lambda: processes)
    monkeypatch.setattr(parts_module, "jax", there)
    said = job()[1].splitlines()
    assert said[0] == "answering: 45 records in 5 windows"
    assert said[1] == line or (line is None and not said[1].startswith("note"))


def test_a_job_that_goes_on_keeps_its_windows(job, monkeypatch):
    begun(job, monkeypatch)  # 2 of 5 are answered
    monkeypatch.setattr(parts_module, "jax", types.SimpleNamespace(process_count=lambda: 4))
    assert job()[1].splitlines()[1] == "note: 3 windows for 4 processes: 1 idle"
    monkeypatch.setattr(parts_module, "jax", types.SimpleNamespace(process_count=lambda: 2))
    again = open_parts(job.folder / "b.jsonl", FINGERPRINT)
    again.done = {0}
    assert again.idle(1, 9) == ""  # all are answered
    again.close()


def test_one_process_at_a_time(job, tmp_path):
    parts = open_parts(tmp_path / "b.jsonl", FINGERPRINT)
    with pytest.raises(UserError, match="another process is writing"):
        open_parts(tmp_path / "b.jsonl", FINGERPRINT)
    parts.close()
    open_parts(tmp_path / "b.jsonl", FINGERPRINT).close()


def test_a_full_disk_is_told_in_one_line_and_it_goes_on_once_there_is_room(job, unbroken):
    with files_of_at_most(1000), pytest.raises(UserError, match=r"no room to write .*a\.jsonl"):
        job()
    assert not (job.folder / "a.jsonl").exists()
    assert job()[0] == 0
    assert written(job) == unbroken
