"""The drills: a run that is killed, or asked to stop, everywhere, and what becomes of it."""

import hashlib
import json
import os
import signal

import numpy as np
import pytest

from tests.training.forked import STEPS, in_child, settings

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs, so that all starts but the first load them."""
    os.environ.setdefault("FORKED_CACHE", str(tmp_path_factory.mktemp("compiled")))
    # What the children need, imported once.
    import moemoe_jax.training.loop  # noqa: F401


def train(folder, before=lambda: None):
    """Trains in a child; `before` is run there first."""

    def job():
        from moemoe_jax.training.loop import train
        from moemoe_jax.training.stopping import Stop

        stop = Stop().listen()
        before()
        train(settings(), str(folder), stop=stop)

    return in_child(job, folder.with_name(folder.name + ".log"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert train(folder) == 0, folder.with_name("unbroken.log").read_text()
    return contents(folder)


def contents(folder):
    """Hashes of every array of the last checkpoint and of the 50 batches that come next."""
    log = folder.with_name(folder.name + ".contents")

    def job():
        import jax
        import orbax.checkpoint as ocp

        from moemoe_jax.training.setup import open_data
        from moemoe_jax.workdir import WorkDir

        place = folder / "checkpoints" / str(STEPS)
        arrays = ocp.PyTreeCheckpointer().restore(place / "state")
        found = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(arrays)}
        data = open_data(settings(), WorkDir(folder), True, lambda _: None)
        manifest = json.loads((place / "manifest.json").read_text())
        data.train.set_state(manifest["meta"]["data"])
        for number in range(50):
            batch = jax.tree_util.tree_leaves_with_path(next(data.train))
            found |= {f"batch {number} {jax.tree_util.keystr(k)}": v for k, v in batch}
        data.train.close()
        hashes = {k: f"{np.asarray(v).dtype} {digest(v)}" for k, v in found.items()}
        print(json.dumps(hashes))

    assert in_child(job, log) == 0, log.read_text()
    return json.loads(log.read_text().splitlines()[-1]) | {"metrics": metrics(folder)}


def digest(value):
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def metrics(folder):
    """The scalars of each step, without those that are measured by the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("speed/", "time"))} for row in rows]


def steps_saved(folder):
    place = folder / "checkpoints"
    return max((int(p.name) for p in place.glob("*") if p.name.isdigit()), default=0)


def differing(found, expected):
    assert set(found) == set(expected)
    return [name for name in expected if found[name] != expected[name]]


def kill_at(number):
    """Has the process killed at step `number`: when it is logged (odd) or being saved (even)."""
    from moemoe_jax.training import goodput

    moment = "update" if number % 2 else "saved"
    original = getattr(goodput.Goodput, moment)

    def fatal(self, step, *args, **kwargs):
        if step == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, step, *args, **kwargs)

    setattr(goodput.Goodput, moment, fatal)


def test_killed_at_every_step_a_run_ends_bit_for_bit_as_an_unbroken_one(unbroken, tmp_path):
    folder = tmp_path / "killed"
    print(f"\n{'killed at':>9}{'by':>9}{'whole checkpoint':>18}")
    for number in range(1, STEPS + 1):
        assert train(folder, lambda n=number: kill_at(n)) == -signal.SIGKILL
        print(f"{number:>9}{'SIGKILL':>9}{steps_saved(folder):>18}", flush=True)
    assert train(folder) == 0, folder.with_name("killed.log").read_text()
    differences = differing(contents(folder), unbroken)
    print(f"{len(unbroken)} arrays, batches and metrics compared: {len(differences)} differ")
    assert differences == []
    starts = json.loads((folder / "goodput.json").read_text())["starts"]
    assert [s["end"] for s in starts] == [""] * (len(starts) - 1) + ["done"]


def signal_in(phase, step, number):
    """Has the process signalled as it enters a phase for the first time from `step` on."""
    from moemoe_jax.training import goodput, timing

    now = {"step": 0, "sent": False}
    measure, update = timing.Ledger.measure, goodput.Goodput.update

    def noted(self, done):
        now["step"] = done
        update(self, done)

    def measured(self, name):
        if name == phase and now["step"] >= step and not now["sent"]:
            now["sent"] = True
            os.kill(os.getpid(), number)
        return measure(self, name)

    goodput.Goodput.update = noted  # also of the step that it goes on from
    timing.Ledger.measure = measured


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_asked_to_stop_in_each_phase_a_run_loses_one_step_at_most(unbroken, tmp_path, number):
    folder = tmp_path / "stopped"
    plan = [("startup", 0), ("compile", 0), ("step", 2), ("input_wait", 4), ("save", 6)]
    plan += [("evaluation", 10), ("startup", 0), ("compile", 10), ("evaluation", 20)]
    print(f"\n{number.name + ' in':>12}{'reached':>9}{'status':>8}{'saved':>7}")
    before = 0
    for phase, step in plan:
        status = train(folder, lambda p=phase, s=step: signal_in(p, s, number))
        saved = steps_saved(folder)
        print(f"{phase:>12}{max(step, before):>9}{status:>8}{saved:>7}", flush=True)
        assert status == 75, folder.with_name("stopped.log").read_text()
        assert saved >= max(step, before) and saved <= max(step, before) + 2
        before = saved
    assert train(folder) == 0, folder.with_name("stopped.log").read_text()
    differences = differing(contents(folder), unbroken)
    print(f"{len(unbroken)} arrays, batches and metrics compared: {len(differences)} differ")
    assert differences == []
    starts = json.loads((folder / "goodput.json").read_text())["starts"]
    assert [s["end"] for s in starts if s["end"]][-2:] == ["stopped", "done"]
