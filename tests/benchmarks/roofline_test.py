"""The tables of the roofline page, from numbers that are easily divided."""

import jax
import pytest

from benchmarks import roofline
from benchmarks.roofline import Work
from moemoe_jax.aot.chips import CHIPS, H100
from tests.launch.tiny import get_config

# 197 GFLOP, 8.19 GB and 1 GB sent: on a v5e 1, 10 and 10 ms.
WORK = Work(197e9, {"parameters": 8e9, "activations": 0.19e9}, 1e9)


def test_bounds_are_work_over_rates():
    least = WORK.bounds(CHIPS["v5e"])
    assert (least.compute, least.hbm, least.ici) == pytest.approx((1e-3, 1e-2, 1e-2))
    assert WORK.intensity == pytest.approx(197 / 8.19)
    assert WORK.bounds(H100).name == "HBM"


def test_tables_have_a_line_for_each_program_and_chip():
    needs = roofline.needs_table([("a step", WORK, 0.9999), ("answers", WORK, None)])
    header, _, step, answers = needs.splitlines()
    assert header.count("|") == step.count("|") == answers.count("|")
    assert "| a step | 197 | 0.9999 | 8.00 |  | 0.19 |  | 8.19 | 24 | 1000 |" in step
    lines = roofline.bounds_table([("a step", WORK, 0.9999)], 8).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["v5e", "v5p", "v6e", "H100"]
    assert lines[2].endswith("| 1.00 | 10.00 | 10.00 | HBM | 800 |")


@pytest.mark.parametrize("kind", ["train", "answer"])
def test_devices_share_the_work_and_send_for_it(kind):
    def work(**mesh):
        mapping = get_config("text")
        mapping.model.moe_layers.decoder, mapping.data.vocab_rows = "odd", 400
        mapping.mesh.update(mesh)
        count = 2 * mesh.get("fsdp", 1)
        devices = jax.devices()[: count // 2 * mesh.get("expert", 1)]
        return roofline.work_of(roofline.settings(mapping, 4 * len(devices)), kind, devices)

    alone, split = work(), work(fsdp=2, expert=2)
    # The question table is the whole batch's, wherever its rows are encoded; all else is by device.
    assert split.flops == pytest.approx(alone.flops, rel=0.3)
    assert alone.sent == 0 < split.sent
    assert split.moved["parameters"] < alone.moved["parameters"]
