import io
import json
import math

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from moemoe_jax.training.logging import MetricsWriter, Progress, read_metrics


def events(folder):
    """Reads TensorBoard's records: length (8), its crc (4), the event, its crc (4)."""
    found = []
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return found


def test_lines_events_and_texts(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": jnp.float32(0.5), "lr": np.float64(1e-3)})
        writer.text(1, "samples", "colour: *red*")
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["train/loss"], row["lr"]) == (1, 0.5, 1e-3)
    assert row["time"] > 0
    values = [value for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    assert {value.tag for value in values} == {"train/loss", "lr", "samples/text_summary"}


def test_what_is_not_finite_stays_strict_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": float("nan"), "b": float("-inf")})

    def refuse(name):
        raise AssertionError(name)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["a"], row["b"]) == ("nan", "-inf")
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf


def test_a_resumed_run_has_no_step_twice(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    assert len(read_metrics(tmp_path)) == 5
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, {"loss": 40.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    MetricsWriter(tmp_path).close()
    assert read_metrics(tmp_path) == []


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_plain_lines_in_a_log():
    stream = io.StringIO()
    with Progress(5, log_every=2, terminal=False, stream=stream) as progress:
        for step in range(1, 6):
            progress.update(step, loss=1.0 / step, examples_per_second=12.5)
        progress.note("saved")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "train 2/5",
        "train 4/5",
        "train 5/5",
        "saved",
    ]
    assert "loss 0.5  examples/s 12.5  left 0:00:00" in lines[0]


def test_what_is_left_does_not_count_the_time_of_compiling(monkeypatch):
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("moemoe_jax.training.logging.time.monotonic", lambda: clock[0])
    with Progress(5, log_every=1, terminal=False, stream=stream) as progress:
        with progress.compiling(1):
            clock[0] += 100.0
        progress.update(1)
        clock[0] += 2.0
        progress.update(2)
        with progress.compiling(3):  # for another length of text
            clock[0] += 100.0
        progress.update(3)
    assert stream.getvalue().splitlines() == [
        "train: compiling the training step ...",
        "train: compiled in 100 s, with step 1",
        "train 1/5  left ?",
        "train 2/5  left 0:00:06",
        "train: compiling the training step ...",
        "train: compiled in 100 s, with step 3",
        "train 3/5  left 0:00:02",
    ]


def test_a_bar_on_a_terminal(capsys):
    stream = io.StringIO()
    with Progress(4, start_step=2, terminal=True, stream=stream) as progress:
        progress.update(3, loss=0.25)
        progress.note("evaluated")
        progress.update(4)
    bar = capsys.readouterr().err
    assert "4/4" in bar
    assert "loss=0.25" in bar
    assert stream.getvalue() == "evaluated\n"
