"""Drills: many flipped bits, kills in the middle of saves, a disk that is full. Print tables."""

from collections import Counter
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
from etils import epath
import jax
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.training import manifest
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.checksums import checksums
from tests.launch.cli import ROOT, environment
from tests.training import damages, saving_until_killed, two_processes

pytestmark = pytest.mark.drill
FLIPS, KILLS = 200, 20
STATE = {step: saving_until_killed.state(step) for step in (1, 2)}
WANTED = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in STATE[1].items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved")
    with Checkpoints(place) as checkpoints:
        for step, state in STATE.items():
            checkpoints.save(step, state, {"data": step})
    return place


def uses_the_one_before(place):
    """Whether the damage in checkpoint 2 is told and 1 is used; and what is told."""
    with Checkpoints(place, read_only=True) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(2, WANTED)
        restored = checkpoints.restore_latest(WANTED)
    chex.assert_trees_all_equal(jax.device_get(restored.state), STATE[1])
    assert restored.step == 1 and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("where", ["any byte", "any file", "array data"])
def test_flipped_bits(saved, tmp_path, where):
    rng, found, named, shown = random.Random(where), Counter(), Counter(), Counter()
    place = shutil.copytree(saved, tmp_path / "checkpoints")
    files = damages.files(place / "2")
    if where == "array data":
        files = [damages.arrays(place / "2")]
    total = FLIPS if where == "any byte" else FLIPS // 2
    for _ in range(total):
        if where == "any byte":
            path, bit = damages.any_bit(place / "2", rng)
        else:
            path = rng.choice(files)
            bit = rng.randrange(path.stat().st_size * 8)
        kind = re.sub(r"[0-9a-f]{32}", "*", str(path.relative_to(place / "2")))
        shown[kind] += 1
        damages.flip(path, bit)
        told = uses_the_one_before(place)
        found[kind] += "is damaged (" in told
        named[kind] += "leaves: " in told
        damages.flip(path, bit)  # back again
    print(f"\n{total} single-bit flips in {where}:")
    print(f"{'file':44} {'flips':>6} {'found':>6} {'leaf named':>10}")
    for kind, count in sorted(shown.items()):
        print(f"{kind:44} {count:6} {found[kind]:6} {named[kind]:10}")
    assert sum(found.values()) == total
    with Checkpoints(place, read_only=True) as checkpoints:
        assert checkpoints.restore_latest(WANTED).step == 2


def test_kinds_of_damage(saved, tmp_path):
    print()
    for damage in damages.KINDS:
        place = shutil.copytree(saved, tmp_path / damage.__name__)
        damage(place / "2", place / "1")
        told = re.search(r"is damaged \((.*)\): ", uses_the_one_before(place))[1]
        print(f"{damage.__name__:14} {re.sub(r'[0-9a-f]{32}', '*', told)[:150]}")


def test_kills_during_saves(tmp_path):
    """Every checkpoint that has its name is whole and has the values of its step."""
    rng, rows = random.Random(0), []
    for kill in range(KILLS):
        job = subprocess.Popen(
            [sys.executable, "-m", "tests.training.saving_until_killed", str(tmp_path)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # One save is on its way when the next is announced; then a moment anywhere in it.
        begun = [int(job.stdout.readline()) for _ in range(2)]
        time.sleep(rng.uniform(0, 0.15))
        job.send_signal(signal.SIGKILL)
        _, told = job.communicate()
        assert "damaged" not in told
        left = sorted(path.name for path in tmp_path.iterdir())
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            steps = checkpoints.steps()
            for step in steps:
                state = checkpoints.restore(step, WANTED).state
                chex.assert_trees_all_equal(jax.device_get(state), saving_until_killed.state(step))
        assert steps[-1] >= begun[0]  # what was on disk before the last save began
        rows.append((kill + 1, begun[-1], steps, [name for name in left if not name.isdigit()]))
    print(f"\n{'kill':>4} {'saving':>6}  whole checkpoints, unfinished folders")
    for kill, saving, steps, unfinished in rows:
        print(f"{kill:4} {saving:6}  {steps} {unfinished}")
    assert any(unfinished for *_, unfinished in rows), "no kill met a save that was under way"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB; only root may have one."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(small_disk, monkeypatch):
    """Before a save there is too little room; or what room there was is taken during it."""
    directory = small_disk / "checkpoints"
    state = {"x": np.random.default_rng(0).normal(size=(2**18,)).astype("float32")}  # 1 MiB
    wanted = {"x": jax.ShapeDtypeStruct((2**18,), "float32")}
    with Checkpoints(directory, keep_last=5) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        (small_disk / "others").write_bytes(b"x" * 5 * 2**19)
        with pytest.raises(OSError, match=r"No space left on device \(0\.0021 GB needed") as no:
            checkpoints.save(2, state)
        print(f"\nbefore the save: {no.value}")
        assert no.value.filename == str(directory)
        monkeypatch.setattr("moemoe_jax.training.disk.require_room", lambda *_: None)
        checkpoints.save(2, state)
        with pytest.raises(OSError, match="No space left on device") as no:
            checkpoints.wait()
        print(f"during the save: {no.value}")
        assert checkpoints.restore_latest(wanted).step == 1
    with Checkpoints(directory, keep_last=5) as checkpoints:
        assert checkpoints.steps() == [1]
        restored = checkpoints.restore_latest(wanted)
        chex.assert_trees_all_equal(jax.device_get(restored.state), state)
        (small_disk / "others").unlink()
        assert checkpoints.save(2, state)
        checkpoints.wait()
        assert checkpoints.restore_latest(wanted).step == 2


def test_two_processes_agree(tmp_path):
    """Both name the damage and use the one before; one process with other devices reads it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    module = "tests.training.two_processes"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(number), str(port), str(tmp_path)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    told = [job.communicate(timeout=500) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    assert ["restored 1, saved again True" in out for out, _ in told] == [True, True]
    assert ["step 1 is used instead" in err for _, err in told] == [True, False]
    values = two_processes.values(2)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    place = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
    wanted = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for n, x in values.items()}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(wanted)
    assert restored.step == 2
    chex.assert_trees_all_equal(jax.device_get(restored.state), values)
    saved = manifest.read(epath.Path(tmp_path / "2"), 2)
    assert {n: x.checksum for n, x in saved.leaves.items()} == checksums(values)
