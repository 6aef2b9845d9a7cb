"""One device equals many: loss and every gradient leaf, with dropout and router noise on."""

import dataclasses

import pytest

from moemoe_jax.parallel.mesh import MeshConfig
from tests.models.tiny import batch
from tests.parallel.meshes import IMAGE, ONE, TEXT, collectives, deviations, step_on

SHAPES = [
    MeshConfig(data=4, tensor=2),
    MeshConfig(data=2, expert=2, tensor=2),
    MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    MeshConfig(data=2, fsdp=2, expert=2),
    MeshConfig(data=4, expert=2, slices=2),
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, expert=8),
    MeshConfig(data=2, expert=4),
]


def test_a_step_on_eight_devices_equals_one_on_one_device():
    data = batch(TEXT, products=8, questions=2)
    loss, gradients, _ = step_on(ONE, TEXT, data)
    spread_loss, spread, program = step_on(MeshConfig(data=2, fsdp=2, expert=2), TEXT, data)
    assert spread_loss == pytest.approx(loss, rel=1e-5)
    assert max(deviations(spread, gradients).values()) < 1e-5
    moved = collectives(program)
    assert "all-to-all" in {kind for kind, _ in moved}
    gathered = {shape for kind, shape in moved if kind == "all-gather"}
    # Kernels of 16 x 24 are, of the 4 of 8 experts that a device holds; never of all, and never
    # what belongs to the 8 products.
    assert (4, 16, 24) in gathered
    assert not {shape for shape in gathered if shape[0] == 8}


@pytest.mark.drill
def test_every_mesh_equals_one_device():
    model = dataclasses.replace(
        IMAGE, moe_layers=dataclasses.replace(IMAGE.moe_layers, context_encoder="all")
    )
    limited = dataclasses.replace(
        model, moe=dataclasses.replace(model.moe, capacity_factor=0.8, noise="learned")
    )
    cases = [(model, shape, 1) for shape in SHAPES]
    cases.append((model, MeshConfig(data=2, expert=2), 2))
    cases.append((limited, MeshConfig(data=2, fsdp=2, expert=2), 1))
    data, alone, beyond = batch(model, products=8, questions=2), {}, {}
    print(f"\n{'mesh':42} {'loss':>9} {'gradients':>10}  the leaf that differs most")
    for config, shape, accumulation in cases:
        if (config, accumulation) not in alone:
            alone[config, accumulation] = step_on(ONE, config, data, accumulation)[:2]
        loss, gradients = alone[config, accumulation]
        found_loss, found, _ = step_on(shape, config, data, accumulation)
        off = deviations(found, gradients)
        leaf = max(off, key=off.get)
        loss_off = abs(found_loss - loss) / abs(loss)
        name = f"{shape}" + f" slices={shape.slices}" * (shape.slices > 1)
        name += " capacity" * (config is limited) + " 2 micro-batches" * (accumulation > 1)
        print(f"{name:42} {loss_off:9.1e} {off[leaf]:10.1e}  {leaf}", flush=True)
        off["loss"] = loss_off
        beyond |= {(name, leaf): value for leaf, value in off.items() if value >= 1e-5}
    assert not beyond
