import functools
import re

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from moemoe_jax.parallel.axes import constrain, gathered, mesh_in_use, spec_for, using
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.sharding import place_batch, replicated
from tests.parallel.meshes import collectives

MESH = MeshConfig(data=2, fsdp=2, expert=2)


@pytest.mark.parametrize(
    ("names", "shape", "spec", "short"),
    [
        (("batch", None), (16, 3), PartitionSpec(("data", "fsdp", "expert"), None), []),
        # 12 rows: 2 x 2 devices along data and fsdp have three each; expert would make it eight.
        (("batch", None), (12, 3), PartitionSpec(("data", "fsdp"), None), [0]),
        (("batch", None), (11, 3), PartitionSpec(None, None), [0]),
        (("batch", "embed"), (16, 4), PartitionSpec(("data", "fsdp", "expert"), None), []),
        (("layers", "embed", "heads"), (2, 4, 5), PartitionSpec(None, "fsdp", "tensor"), []),
    ],
)
def test_a_dimension_takes_those_of_its_mesh_axes_that_divide_it(names, shape, spec, short):
    assert spec_for(names, shape, make_mesh(MESH)) == (spec, short)


def test_an_activation_lies_as_its_names_say_under_a_mesh_and_is_left_alone_without():
    x = jnp.arange(32.0).reshape(16, 2)
    assert constrain(x, "batch") is x
    assert gathered(x, ("embed", None)) is x
    mesh = make_mesh(MESH)

    @jax.jit
    def doubled(x):
        with using(mesh):
            assert mesh_in_use().shape == mesh.shape
            return constrain(2 * x, "batch")

    y = doubled(jax.device_put(x, replicated(mesh)))
    assert y.sharding.spec == PartitionSpec(("data", "fsdp", "expert"))
    np.testing.assert_array_equal(y, 2 * x)
    with using(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert mesh_in_use() is None


def test_parameters_travel_to_the_rows_and_not_rows_to_the_parameters():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    weights = jax.device_put(
        jnp.arange(48.0).reshape(16, 3) / 48,
        jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp", None)),
    )
    x = place_batch(np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32), mesh)

    def loss(weights, x):
        return jnp.sum(jnp.sin(x @ gathered(weights, ("embed", None))))

    @functools.partial(jax.jit, out_shardings=(replicated(mesh), weights.sharding))
    def step(weights, x):
        with using(mesh):
            return jax.value_and_grad(loss)(weights, x)

    moved = collectives(step.lower(weights, x).compile())
    assert [shape for kind, shape in moved if kind == "all-gather"] == [(16, 3)]
    assert not {(40, 16), (40, 3), (40, 2)} & {shape for _, shape in moved}
    alone = jax.value_and_grad(loss)(np.asarray(weights), np.asarray(x))
    chex.assert_trees_all_close(jax.device_get(step(weights, x)), alone, rtol=1e-5, atol=1e-5)


def test_a_parameter_is_converted_before_it_travels():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))

    # Half precision, as a CPU's collectives take bfloat16 for float32.
    def product(weights, x):
        with using(mesh):
            return x @ gathered(weights.astype(jnp.float16), ("embed", None))

    split = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp", None))
    weights = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((40, 16), jnp.float16, sharding=split)
    program = jax.jit(product).lower(weights, x).compile().as_text()
    assert re.findall(r"= (\w+)\[16,3\]\S* all-gather", program) == ["f16"]
