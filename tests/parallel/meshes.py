"""A training step on any mesh: its loss, its gradients and its compiled program."""

import dataclasses
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from moemoe_jax.models.build import abstract_model
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.sharding import param_shardings, place_batch, replicated
from moemoe_jax.training.losses import LossConfig
from moemoe_jax.training.step import init_state, make_train_step
from tests.models.tiny import MIXTURE, QUICK, WITH_IMAGE, random_model

# Keeps the gradients as its state and changes nothing.
RECORD = optax.GradientTransformation(
    init=lambda params: params,
    update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, params), grads),
)
ONE = MeshConfig(data=1)


def noisy(config):
    """The model with all that is random turned on."""
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, dropout=0.1),
        vision=dataclasses.replace(config.vision, drop_path=0.2, dropout=0.1),
        moe=dataclasses.replace(config.moe, num_experts=8, noise="gaussian"),
    )


TEXT, IMAGE = noisy(MIXTURE), noisy(WITH_IMAGE)


def step_on(sizes: MeshConfig, config, batch, accumulation: int = 1):
    """One step of `random_model`: (loss, gradients by path, the compiled program)."""
    run, program = compiled(sizes, config, batch, accumulation)
    return *run(random_model(config)), program


def compiled(sizes: MeshConfig, config, batch, accumulation: int = 1, platform: str | None = None):
    """A step on a mesh: a function from a model to (loss, gradients by path), and the program."""
    count = abs(int(np.prod(sizes.sizes)))
    mesh = make_mesh(sizes, jax.devices(platform)[:count])
    graph, shapes = nnx.split(abstract_model(config))
    step = make_train_step(
        graph,
        RECORD,
        lambda step: step,
        LossConfig(z_weight=0.01),
        mesh=mesh,
        seed=3,
        accumulation=accumulation,
    )
    places = param_shardings(shapes, mesh)
    whole = replicated(mesh)

    def arguments(params):
        state = init_state(jax.device_put(params, places), RECORD, ema=False)
        return state, nnx.State({}), place_batch(batch, mesh)

    def run(model):
        after, metrics = program(*arguments(nnx.state(model)))
        gradients = {
            "/".join(map(str, path)): np.asarray(leaf[...])
            for path, leaf in nnx.to_flat_state(after.optimizer)
        }
        return float(metrics["loss/total"]), gradients

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    first = arguments(zeros)
    out = first[0].replace(
        step=whole, params=places, optimizer=places, skipped=whole, skipped_in_a_row=whole
    )
    jitted = jax.jit(step, out_shardings=(out, whole), compiler_options=QUICK)
    program = jitted.lower(*first).compile()
    return run, program


def deviations(found: dict, wanted: dict) -> dict[str, float]:
    """By leaf, the norm of the difference in units of the leaf's norm."""
    assert found.keys() == wanted.keys() and found
    norm = np.linalg.norm
    return {
        name: float(norm(found[name] - leaf) / max(norm(leaf), 1e-30))
        for name, leaf in wanted.items()
    }


def collectives(program) -> list[tuple[str, tuple[int, ...]]]:
    """The collectives of a compiled program: (kind, shape on one device) of each operand."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    found = []
    for line in program.as_text().splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match:
            for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                found.append((match[2], tuple(int(n) for n in shape.split(",") if n)))
    return found
