"""The drill: SIGTERM to one of two processes that train, in every phase."""

import re

import pytest

from tests.launch import several
from tests.launch.cli import TINY
from tests.launch.processes_test import close, history

pytestmark = pytest.mark.drill

STEPS = 30
SETTINGS = (
    f"--config={TINY}:text",
    "--config.optimizer.name=adamw",
    "--config.data.products_per_batch=8",
    f"--config.train.steps={STEPS}",
    "--config.train.eval_every=12",
    "--config.train.save_every=1",
)
# The phase, from which step on, and which of the processes.
PLAN = (
    ("startup", 0, 0), ("compile", 0, 1), ("step", 2, 0), ("input_wait", 0, 1), ("save", 0, 0),
    ("save", 0, 1), ("evaluation", 12, 1), ("startup", 0, 1), ("compile", 0, 0), ("step", 0, 1),
)  # fmt: skip


def reached(folder):
    """The last step that is saved, and the last that was logged."""
    saved = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return max(saved, default=0), max(history(folder) if saved else {}, default=0)


def test_two_processes_asked_to_stop_in_each_phase_lose_nothing(tmp_path, capsys):
    unbroken, folder, cache = tmp_path / "unbroken", tmp_path / "stopped", tmp_path / "cache"
    where = {"count": 2, "devices": 1, "cache": cache}
    several.run("train", *SETTINGS, f"--workdir={unbroken}", **where)
    rows = []
    for phase, step, victim in PLAN:
        plan = (str(victim), phase, str(step))
        done = several.finish(
            several.start(
                "tests.launch.signalled", *plan, *SETTINGS, f"--workdir={folder}", **where
            )
        )
        before = rows[-1][-1] if rows else 0
        rows.append((phase, victim, *(status for status, *_ in done), reached(folder)[0]))
        with capsys.disabled():
            print("{:>12}  process {}  statuses {} {}  saved {}".format(*rows[-1]), flush=True)
        assert rows[-1][2:4] == (75, 75), done
        saved, logged = reached(folder)
        assert saved == logged and before <= saved < STEPS
        assert re.search(rf"stopped .* after step {saved} of {STEPS}", done[0][1])
    several.run("train", *SETTINGS, f"--workdir={folder}", **where)
    assert close(history(unbroken), history(folder)) < 1e-6
