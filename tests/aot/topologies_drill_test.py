"""A small model compiled for real slices: what must hold from slice to slice. Needs libtpu.

    python -m pytest -q -n0 -s -m drill tests/aot/topologies_drill_test.py

The first test takes five compilations, a minute and a half of one quiet core, the second two; each
other takes one.
"""

import json

import pytest

from tests.launch.cli import TINY, run

pytestmark = pytest.mark.drill

# Adam, as Muon's iterations are most of what a small model's step has to compile.
SETTINGS = (
    "--config.model.moe_layers.decoder=odd",
    "--config.model.moe.num_experts=4",
    "--config.model.text.dtype=bfloat16",
    "--config.model.text.scan_layers=True",
    "--config.optimizer.name=adam",
    "--config.optimizer.weight_decay=0.0",
    "--config.mesh.fsdp=2",
    "--config.mesh.expert=2",
    "--products_per_chip=8",
    "--programs=train",
)
HOUR = 3600  # for machines that have other work
SLICES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v5p:2x2x2", "v6e:4x4")


def check(*arguments, config=TINY):
    done = run("compile_check", f"--config={config}", *SETTINGS, *arguments, timeout=HOUR)
    print(done.stdout)
    return done


def programs_on(slices, tmp_path, *arguments):
    """What is found in the training step, by slice."""
    file = tmp_path / "found.json"
    done = check(*(f"--topology={name}" for name in slices), f"--json={file}", *arguments)
    assert done.returncode == 0, done.stderr
    return {entry["topology"]: entry["programs"]["train"] for entry in json.loads(file.read_text())}


def test_a_chip_s_work_does_not_grow_with_the_slice(tmp_path):
    found = programs_on(SLICES, tmp_path)
    assert found["v5e:16x16"]["flops"] == pytest.approx(found["v5e:4x4"]["flops"], rel=0.01)


def test_what_a_chip_sends_does_not_grow_with_the_slice(tmp_path):
    # A product may ask any of the batch's questions, so that what tells them reaches all chips.
    # Beside parameters as few as these, that is most of what is sent: so as many for each slice.
    # And a ring of 4 along `data`, as in v5e:4x4, sends 3/4 of what is summed, one of 64 sends all.
    slices = ("v5e:8x8", "v5e:16x16")
    found = programs_on(slices, tmp_path, "--config.data.distinct_questions=256")
    small, large = (
        sum(kind["bytes"] for kind in found[name]["collectives"].values()) for name in slices
    )
    assert large <= 1.1 * small


def test_experts_alone_cost_no_more_than_they_need(tmp_path):
    file = tmp_path / "found.json"
    done = check("--topology=v5e:2x2", f"--json={file}", config=f"{TINY}:experts")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(file.read_text())
    model, held = entry["formula"]["model"], entry["held"]
    assert entry["programs"]["train"]["flops"] * entry["devices"] <= 1.05 * model
    # Two moments for each trained parameter, in float32, and a count of steps for each kind.
    spare = held["optimizer state"] - 2 * held["trained parameters"]
    assert 0 <= spare <= 64 and held["frozen parameters"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ("--config.mesh.expert=1", "--config.mesh.fsdp=4"),
        ("--config.model.moe.dispatch=grouped",),
    ],
    ids=["auto", "experts dealt out"],
)
def test_experts_multiply_with_a_kernel_that_says_what_the_formula_does(tmp_path, options):
    # 128 tokens a chip: up to 64, "auto" is "dense".
    options = (*options, "--products_per_chip=16", f"--hlo={tmp_path}")
    found = programs_on(["v5e:2x2"], tmp_path, *options)
    text = next(tmp_path.glob("*.hlo.txt")).read_text()
    assert all(f"/{name}/pallas_call" in text for name in ("grouped", "grouped_collect"))
    (entry,) = json.loads((tmp_path / "found.json").read_text())
    work = found["v5e:2x2"]["flops"] * entry["devices"]
    assert work == pytest.approx(entry["formula"]["total"], rel=0.05)


def test_too_large_a_batch_is_a_row_and_a_status(tmp_path):
    sizes = ("--config.data.image_size=32", "--config.data.text_length=64")
    done = check("--products_per_chip=200000", "--topology=v5e:2x2", *sizes)
    assert done.returncode == 3, done.stderr
    assert "does not fit: needs" in done.stdout


def test_the_answering_program_compiles():
    done = check("--programs=answer", "--topology=v5e:4x4")
    assert done.returncode == 0, done.stderr
    assert "answer" in done.stdout
