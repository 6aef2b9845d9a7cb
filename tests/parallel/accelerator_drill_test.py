"""An accelerator computes what the CPU does: values, gradients and answers, in float32.

    python -m pytest -m drill tests/parallel/accelerator_drill_test.py

Matrix products are asked for in full precision (conftest.py), which is not the default of a GPU or
a TPU. Only meant for a machine that has one; elsewhere it fails.
"""

import dataclasses
import functools

from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.predictor import answer_batch
from moemoe_jax.inference.questions import encode_table
from moemoe_jax.models.build import create_model
from moemoe_jax.nn.dispatch import DISPATCHERS
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.sharding import place_batch, replicated
from tests.models.tiny import batch, random_model
from tests.parallel.meshes import IMAGE, ONE, compiled, deviations

BAR = 1e-4  # of a gradient's norm; sums are taken in another order
LONG = {"products": 16, "questions": 6, "length": 8}  # too many tokens for "dense" to be cheapest

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module", autouse=True)
def there():
    assert jax.default_backend() != "cpu", "there is no accelerator here"
    print(f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}")


def dispatched(backend):
    return dataclasses.replace(IMAGE, moe=dataclasses.replace(IMAGE.moe, dispatch=backend))


@pytest.mark.parametrize("backend", ["auto", *DISPATCHERS])
def test_a_training_step(backend):
    """With dropout and router noise: randomness does not depend on the device."""
    config = dispatched(backend)
    data = batch(config, **LONG)
    start = create_model(config, 0, make_mesh(ONE, jax.devices("cpu")[:1]))
    here, cpu = (compiled(ONE, config, data, platform=where)[0] for where in (None, "cpu"))
    for name, model in {"initial": start, "random": random_model(config)}.items():
        loss, gradients = cpu(model)
        found_loss, found = here(model)
        off = deviations(found, gradients)
        leaf = max(off, key=off.get)
        print(
            f"{backend:8}{name:>8}: loss {abs(found_loss / loss - 1):.1e}, {leaf} {off[leaf]:.1e}"
        )
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert off[leaf] < BAR


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("beams", [1, 4])
def test_answers(beams, half):
    """Ids and the logarithm of their confidence; in bfloat16, that there are any."""
    config = IMAGE
    if half:
        config = dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, dtype="bfloat16"),
            vision=dataclasses.replace(config.vision, dtype="bfloat16"),
        )
    data = batch(config, **LONG)
    del data["answer_ids"]
    graph, params = nnx.split(random_model(config))
    answers = AnswerConfig(beams=beams, alternatives=beams > 1)
    found = {}
    for platform in (None, "cpu"):
        mesh = make_mesh(ONE, jax.devices(platform)[:1])
        run = jax.jit(functools.partial(answer_batch, graph, mesh, 8, answers))
        encode = jax.jit(functools.partial(encode_table, graph, mesh))
        placed = (jax.device_put(params, replicated(mesh)),)
        there = place_batch(data, mesh)
        there["encoded_questions"] = encode(placed, there.pop("question_ids"))
        found[platform] = [np.asarray(x) for x in run(placed, there)]
    (ids, sure, _), (wanted, wanted_sure, _) = found[None], found["cpu"]
    asked = data["question_valid"]
    same = np.mean(np.all(ids == wanted, axis=-1)[asked])
    off = np.max(np.abs(np.log(sure[asked]) - np.log(wanted_sure[asked])))
    print(f"{beams} beams, {'bfloat16' if half else 'float32'}: {same:.1%} the same, {off:.1e} off")
    assert np.all(np.isfinite(sure))
    if not half:
        assert same == 1.0
        assert off < 1e-3
