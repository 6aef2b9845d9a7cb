import re

import jax
import pytest

from moemoe_jax.aot.chips import Chip
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.training.dry_run import dry_run
from moemoe_jax.workdir import WorkDir
from tests.launch import tiny


def lines_of(tmp_path, phase="experts", start="", **mesh):
    config = tiny.get_config(phase)
    config.data.source = "jsonl:there/is/none"
    config.data.products_per_batch = 64
    config.init.work_dir = start
    config.mesh.update(mesh)
    lines = []
    dry_run(config, WorkDir(tmp_path / "run"), lines.append)
    return lines


def held(lines):
    """The sizes that the summary ends with."""
    summary = "\n".join(lines).rpartition("on a device  ")[2]
    rows = re.findall(r"^(\w.*?)  +([\d,]+) B$", summary, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in rows}


def test_a_pod_is_planned_here_with_nothing_read_made_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("no device is needed"))
    lines = lines_of(tmp_path, data=8, fsdp=4, expert=2)
    assert lines[0] == ("tokenizer: none yet; counted with data.tokenizer_vocab_size, 400 pieces")
    rows = {line.split()[0]: line for line in lines[1].splitlines()}
    # Two experts of 16 x 16 float32: one a device, a quarter of its rows.
    wo = rows["decoder/stack/blocks/1/feed_forward/wo/kernel"]
    assert re.search(r"\(2, 16, 16\) +\(expert, tensor, fsdp\) +256 B$", wo)
    # Layers that are alike share a line.
    query = rows["decoder/stack/blocks/{0,1}/self_attention/query/kernel"]
    assert re.search(r"\(16, 16\) +\(fsdp, tensor\) +2 x 256 B$", query)
    assert re.search(r"\(400, 16\) +\(tensor, fsdp\) +6,400 B$", rows["decoder_embedding/table"])
    assert lines[2:4] == ["", "mesh: data=8 fsdp=4 expert=2 tensor=1, 64 devices"]
    assert not list(tmp_path.iterdir())


def test_what_a_run_starts_from_need_not_be_trained_yet(tmp_path):
    start = str(tmp_path / "dense")
    first, *rest = lines_of(tmp_path, start=start, data=1)
    assert first == f"init: {start} is no work directory yet; planned without it"
    assert rest == lines_of(tmp_path, data=1)


def test_devices_that_do_not_come_out_even_are_no_reason_not_to_plan(tmp_path):
    lines = lines_of(tmp_path, data=-1, fsdp=16)  # 8 devices are here
    summary = lines[lines.index("") + 1 :]
    assert summary[0] == "mesh: data=1 fsdp=16 expert=1 tensor=1, 16 devices"
    assert summary[1].startswith("note: mesh.data is what is left of the devices, and those ")
    assert summary[1].endswith("--config.mesh.data=N plans for more")
    same = lines_of(tmp_path, data=1, fsdp=16)
    assert held(lines) == held(same) and len(lines) == len(same) + 1


def test_the_summary_comes_last_and_stays_on_a_screen(tmp_path):
    lines = lines_of(tmp_path, data=1, fsdp=32, expert=2)
    why = "(embed, 16) is replicated: fsdp=32 does not divide it"
    assert f"note: decoder_embedding/table: dimension 1 {why}" in lines
    summary = lines[lines.index("") + 1 :]
    notes = sum(line.startswith("note: ") for line in lines)
    assert summary[1] == f"notes: {notes} above, on what stays whole on every device"
    assert len("\n".join(summary).splitlines()) <= 24
    assert re.search("all experts +experts +yes +1,536\n", summary[3])
    assert summary[-2] == "of a chip's memory: v5e <1%, v5p <1%, v6e <1%, H100 <1%"


def test_what_is_more_than_a_chip_holds_is_said(tmp_path, monkeypatch):
    sizes = {"tiny": 1e3, "large": 1e6}
    chips = {name: Chip(name, size, 1.0, 1.0, 1.0) for name, size in sizes.items()}
    monkeypatch.setattr("moemoe_jax.training.dry_run.CHIPS", chips)
    told = lines_of(tmp_path, data=8)
    total = held(told)["total, without activations"]
    share = f"tiny {total / 1000:.0%} (does not fit), large {total / 1e6:.0%}, H100 <1%"
    assert told[-2] == f"of a chip's memory: {share}"


def test_the_total_is_of_what_is_trained_and_what_is_frozen(tmp_path):
    spread, whole = (held(lines_of(tmp_path, data=2, expert=n)) for n in (2, 1))
    # Experts (3 x 2 x 16 x 16) and the router (16 x 2) of one layer, in float32.
    assert whole["trained parameters"] == 4 * (3 * 2 * 16 * 16 + 16 * 2)
    assert spread["trained parameters"] == 4 * (3 * 16 * 16 + 16 * 2)
    for copy in ("gradients, in a step", "moving average"):
        assert spread[copy] == spread["trained parameters"]
    assert spread["frozen parameters"] == whole["frozen parameters"] > 0
    assert 0 < spread["optimizer state"] < whole["optimizer state"]
    parts = [number for name, number in spread.items() if not name.startswith("total")]
    assert spread["total, without activations"] == sum(parts)


def test_a_warm_up_is_not_measured_by_data_that_were_not_read(tmp_path):
    config = tiny.get_config("dense")
    config.data.products_per_batch = 8
    config.train.steps, config.train.epochs, config.optimizer.warmup_steps = 0, 6, 50
    dry_run(config, WorkDir(tmp_path / "run"), lambda _: None)


def test_the_vocabulary_is_that_of_the_tokenizer_that_there_is(tmp_path):
    tokenizer = Tokenizer.train(["a red shirt of wool"], 400)
    tokenizer.save(WorkDir(tmp_path / "run").tokenizer)
    lines = lines_of(tmp_path, "dense")
    assert "tokenizer" not in lines[0]
    assert f"({tokenizer.vocab_size}, 16)" in lines[0]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 4, "expert": 4}, "mesh.expert 4 does not divide the 2 experts"),
        ({"data": 96}, "products_per_batch 64 does not divide among the 96 devices"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, mesh, message):
    with pytest.raises(UserError, match=message):
        lines_of(tmp_path, **mesh)


def test_a_back_end_that_a_training_would_refuse_is_refused(tmp_path):
    config = tiny.get_config("experts")
    config.init.work_dir, config.model.moe.dispatch = "", "grouped"
    config.mesh.data, config.mesh.tensor = 2, 2
    lines = []
    with pytest.raises(UserError, match=r"grouped, .* but mesh\.tensor is 2; set model\.moe\."):
        dry_run(config, WorkDir(tmp_path / "run"), lines.append)
    assert "\n" not in "".join(lines)  # no table came first
