"""Ratios, bars, turns and files of the benchmarks; nothing is measured here."""

import importlib
import json
import subprocess
import sys
import types

import pytest

from benchmarks import isolated, measure, registry, run, table
from benchmarks.measure import Context, Samples
from benchmarks.registry import Bar, Row
from moemoe_jax.errors import UserError
from tests.launch.cli import ROOT, environment

CONTEXT = Context(size="tiny", repetitions=2, threads=1)
FASTER = Row("swift", "a step", "the peer", Bar("faster", 2.0), "fake:samples")


def line(row=FASTER, ours=(1.0, 2.0, 3.0), theirs=(5.0, 6.0, 6.0), unit="s a step", note=""):
    samples = {"unit": unit, "ours": list(ours), "theirs": list(theirs), "note": note}
    return table.Line(row, "tiny", samples)


def test_a_bar_compares_speeds_or_costs():
    assert Bar("faster", 2.0).ratio(ours=1.0, theirs=3.0) == 3.0
    assert Bar("at most", 1.25).ratio(ours=1.0, theirs=4.0) == 0.25
    assert Bar("faster", 2.0).met(2.0)
    assert not Bar("faster", 2.0).met(1.99)
    assert Bar("at most", 1.25).met(1.25)
    assert not Bar("at most", 1.25).met(1.26)
    assert Bar("within", 0.02).met(0.981)
    assert not Bar("within", 0.02).met(1.021)
    assert not Bar("at most", 0).met(Bar("at most", 0).ratio(ours=1, theirs=5))


def test_a_line_has_the_ratio_of_medians_and_the_spread_of_pairs():
    # Medians 2 and 6; pairs 5/1, 6/2, 6/3.
    found = line()
    assert found.ratio() == 3.0
    assert found.spread() == (2.0, 5.0)
    assert found.cells()[4:] == ("2 s a step", "6 s a step", "3", "2 to 5", "≥ 2", "met")
    few = line(ours=[4.0], theirs=[6.0])
    assert few.cells()[-4:] == ("1.5", "1.5 to 1.5", "≥ 2", "missed")


def test_quantities_are_readable():
    assert table.quantity(0.0123, "s a question") == "12.3 ms a question"
    assert table.quantity(3 * 2**20, "bytes") == "3 MiB"
    assert table.quantity(1234.5, "s") == "1234 s"
    assert table.quantity(2.5e12, "operations") == "2.5e+12 operations"


def test_files_hold_every_measurement_and_the_table(tmp_path):
    failed = table.Line(FASTER, "small", None, "torch is not\ninstalled")
    table.write([line(note="eager"), failed], {"processor": "P"}, tmp_path / "found.json")
    document = json.loads((tmp_path / "found.json").read_text())
    first, second = document["lines"]
    assert (first["ours"], first["ratio"], first["met"]) == ([1.0, 2.0, 3.0], 3.0, True)
    assert second["failure"] == "torch is not\ninstalled"
    written = (tmp_path / "found.md").read_text().splitlines()
    assert written[0] == "processor P."
    assert written[2].count("|") == written[3].count("|") == written[4].count("|")
    assert written[-2:] == ["- swift, tiny: eager", "- swift, small: torch is not installed"]


def test_both_sides_take_turns_whose_first_call_does_not_count(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def cost(name, values, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds
            return values.pop(0)

        return call

    # A turn goes on for a second: one call of two seconds, or three of .4, of which the median is.
    ours, theirs = cost("a", [9.0, 1.0, 8.0, 2.0], 2.0), cost("b", [9.0, 3.0, 5.0, 4.0] * 2, 0.4)
    assert measure.in_turn(ours, theirs, 2) == ([1.0, 2.0], [4.0, 4.0])
    assert calls == list("aabbbb" * 2)


def test_the_best_way_is_the_cheapest_that_works():
    def broken():
        raise ValueError("no compiler")

    slow, quick = [5.0, 2.0], [1.0, 3.0]  # what the second try says
    name, cost = measure.best(
        {"broken": broken, "slow": lambda: slow.pop(0), "quick": lambda: quick.pop(0)}
    )
    assert name == "best of 2: slow; broken failed: no compiler"
    slow.append(7.0)
    assert cost() == 7.0
    with pytest.raises(RuntimeError, match="no compiler"):
        measure.best({"broken": broken})


def test_every_row_has_its_function():
    for row in registry.ROWS.values():
        module, _, function = row.measure.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.rows.{module}"), function))


def test_a_process_answers_with_samples_or_a_mistake(tmp_path, monkeypatch):
    def samples(context, scale):
        if not scale:
            raise UserError("scale is 0; give more")
        return Samples("s", [scale * context.repetitions], [1.0])

    fake = types.SimpleNamespace(samples=samples)
    monkeypatch.setitem(sys.modules, "benchmarks.rows.fake", fake)
    # In this process, in place of another.
    monkeypatch.setattr(isolated, "run_quietly", lambda command: isolated.main(*command[-2:]))
    found = isolated.call("fake:samples", CONTEXT, scale=3)
    assert found == {"unit": "s", "ours": [6], "theirs": [1.0], "note": ""}
    with pytest.raises(UserError, match="give more"):
        isolated.call("fake:samples", CONTEXT, scale=0)


def test_a_row_that_fails_says_why_and_the_others_go_on(monkeypatch):
    def fail(target, context, **_):
        raise UserError("ctranslate2 is not installed: pip install ctranslate2")

    monkeypatch.setattr(isolated, "call", fail)
    found = run._measure(FASTER, CONTEXT)
    assert found.cells()[-1] == "not measured"
    assert table.notes([found]) == [
        "swift, tiny: ctranslate2 is not installed: pip install ctranslate2"
    ]


def test_torch_is_asked_for_by_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-test\.txt"):
        isolated.require_torch()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "benchmarks.run", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--rows=train_7", "there is no 'train_7'; choose from train_1, train_6"),
        ("--sizes=huge", "there is no 'huge'; choose from tiny, small"),
        ("--threads=4096", "ask for fewer"),
        ("--out=figures.txt", "end it in .json"),
        ("--out=/nowhere/figures.json", "make it first"),
    ],
)
def test_a_mistake_is_one_line(flag, said):
    done = command(flag)
    mistakes = [row for row in done.stderr.splitlines() if not row.startswith("import time:")]
    assert done.returncode == 2
    assert len(mistakes) == 1
    assert said in mistakes[0]


def test_help_and_list_come_without_heavy_imports():
    for flag in ("--help", "--list"):
        done = command(flag)
        assert done.returncode == 0
        assert not {"jax", "torch"} & {
            row.rpartition("|")[2].strip() for row in done.stderr.splitlines()
        }
        if flag == "--list":
            assert "train_38           ≥ 6" in done.stdout
