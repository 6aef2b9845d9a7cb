"""The drill: whole trainings that keep encodings, killed and resumed, against one that does not."""

import pytest

from tests.launch import several
from tests.launch.cli import TINY
from tests.launch.processes_drill_test import kill, reach
from tests.launch.processes_test import close, history

pytestmark = pytest.mark.drill

STEPS = 8  # of 8 products each: the 24 of the catalogue come between two and three times
SETTINGS = (
    f"--config={TINY}:experts",
    "--config.optimizer.name=adamw",
    "--config.data.val_fraction=0.0",
    "--config.data.test_fraction=0.0",
    "--config.data.augment.flip=False",
    "--config.data.augment.word_dropout=0.0",
    "--config.data.products_per_batch=8",
    "--config.train.frozen_dropout=False",
    f"--config.train.steps={STEPS}",
    "--config.train.save_every=1",
    "--config.train.keep_last=9",
)


def train(folder, kept, **where):
    flags = (f"--workdir={folder}", f"--config.train.cache_encodings={kept}")
    return several.start("train", *SETTINGS, *flags, **where)


def finish(jobs):
    done = several.finish(jobs)
    assert [status for status, *_ in done] == [0] * len(done), [err for *_, err in done]
    (line,) = [one for one in done[0][1].splitlines() if one.startswith("encodings: those")] or [""]
    return line


def test_runs_that_keep_encodings_are_those_that_do_not(tmp_path, capsys):
    cache, rows = tmp_path / "compiled", []
    plain = tmp_path / "none"
    assert finish(train(plain, "none", count=1, devices=8, cache=cache)) == ""
    for name, kept, count, devices, killed in (
        ("memory", "memory", 1, 8, 0),
        ("disk, killed", "disk", 1, 8, 4),
        ("memory, 2 processes", "memory", 2, 4, 0),
        ("disk, 2 processes, killed", "disk", 2, 4, 4),
    ):
        folder = tmp_path / name.replace(" ", "-")
        where = {"count": count, "devices": devices, "cache": cache}
        if killed:
            jobs = train(folder, kept, **where)
            reach(jobs, folder, killed)
            kill(jobs)
        line = finish(train(folder, kept, **where))
        assert "24 of 24 products are kept in" in line
        there = int(line.split()[-3])
        assert (there > 0) == bool(killed)
        rows.append((name, there, close(history(plain), history(folder))))
    with capsys.disabled():
        print(f"\n{'kept in':<28}{'there on resuming':>18}{'largest difference':>20}")
        for name, there, worst in rows:
            print(f"{name:<28}{there:>18}{worst:>20.1e}")
    assert all(worst < 1e-5 for *_, worst in rows)
