"""`launch.predict` under SIGKILL and SIGTERM, and its memory on many records; prints tables."""

import json
import os
import random
import signal
import subprocess
import time

import pytest

from tests.launch.cli import ROOT, TINY, command, environment, run

pytestmark = pytest.mark.drill
KILLS = 6
SIZES = (1_000, 100_000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train", f"--config={TINY}", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def write(path, count):
    rng = random.Random(0)
    words = [
        "red",
        "blue",
        "green",
        "shirt",
        "kurta",
        "cotton",
        "long",
        "short",
        "sleeve",
        "neck",
        "round",
    ]
    with path.open("w") as out:
        for number in range(count):
            title = " ".join(rng.choices(words, k=rng.randint(1, 8)))
            out.write(json.dumps({"id": f"p{number}", "sources": {"title": title}}) + "\n")


def start(workdir, records, output, cache, *arguments):
    given = [f"--workdir={workdir}", f"--input={records}", f"--output={output}", *arguments]
    return subprocess.Popen(
        command("predict", *given), cwd=ROOT, env=environment(cache),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def parts(output):
    return len(list(output.parent.glob(f".{output.name}.parts/*.jsonl")))


def test_killed_again_and_again_it_ends_with_the_same_bytes(trained, tmp_path):
    records, cache = tmp_path / "in.jsonl", tmp_path / "programs"
    write(records, 400)
    flags = ["--attributes=color,size", "--answer=window=16,products_per_batch=8"]
    whole = tmp_path / "whole.jsonl"
    said, _ = start(trained, records, whole, cache, *flags).communicate()
    assert whole.exists(), said
    rows = [("signal", "windows answered before", "then")]
    for suffix in ("jsonl", "parquet"):
        output = tmp_path / f"killed.{suffix}"
        for number in range(KILLS):
            before = parts(output)
            process = start(trained, records, output, cache, *flags)
            goal = before + 1 + number % 3
            while process.poll() is None and parts(output) < goal:
                time.sleep(0.005)
            chosen = signal.SIGTERM if number % 3 == 2 else signal.SIGKILL
            process.send_signal(chosen)
            said, _ = process.communicate()
            if chosen == signal.SIGTERM and process.returncode:
                assert process.returncode == 128 + signal.SIGTERM, said
            rows.append((f"{chosen.name} {suffix}", before, parts(output)))
        said, _ = start(trained, records, output, cache, *flags).communicate()
        assert output.exists(), said
    assert (tmp_path / "killed.jsonl").read_bytes() == whole.read_bytes()
    straight = tmp_path / "whole.parquet"
    start(trained, records, straight, cache, *flags).communicate()
    assert (tmp_path / "killed.parquet").read_bytes() == straight.read_bytes()
    print()
    for row in rows:
        print("  ".join(str(cell).ljust(24) for cell in row))


def test_memory_does_not_grow_with_the_records(trained, tmp_path):
    peaks = []
    for count in SIZES:
        records, output = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.out.jsonl"
        write(records, count)
        begun = time.monotonic()
        process = start(trained, records, output, tmp_path / "programs", "--attributes=color")
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, said
        with output.open() as lines:
            assert sum(1 for _ in lines) == count
        peaks.append(usage.ru_maxrss / 1024)
        print(f"\n{count} records: {peaks[-1]:.0f} MiB, {time.monotonic() - begun:.0f} s\n{said}")
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    assert peaks[1] <= 1.1 * peaks[0]
