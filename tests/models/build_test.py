import chex
from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.models.build import abstract_model, create_model, create_parameters
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.sharding import param_shardings
from tests.models.tiny import MIXTURE


@pytest.fixture(scope="module")
def spread():
    return create_model(MIXTURE, 3, make_mesh(MeshConfig(data=2, fsdp=2, expert=2)))


def test_an_abstract_model_has_shapes_and_no_arrays(spread):
    abstract = nnx.state(abstract_model(MIXTURE))
    leaves = jax.tree.leaves(abstract)
    assert leaves
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, nnx.state(spread))
    assert nnx.graphdef(abstract_model(MIXTURE)) == nnx.graphdef(spread)


def test_parameters_are_made_where_the_table_puts_them(spread):
    state = nnx.state(spread)
    places = param_shardings(state, make_mesh(MeshConfig(data=2, fsdp=2, expert=2)))
    assert jax.tree.leaves(jax.tree.map(lambda leaf: leaf.sharding, state)) == jax.tree.leaves(
        places
    )
    experts = spread.decoder.stack.blocks[1].feed_forward.wi.kernel[...]
    assert experts.shape == (4, 16, 24)
    assert experts.addressable_shards[0].data.shape == (2, 8, 24)


def test_the_values_depend_on_the_seed_alone(spread):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    alone = create_model(MIXTURE, 3, one)
    chex.assert_trees_all_close(
        jax.device_get(nnx.state(spread)), jax.device_get(nnx.state(alone)), atol=1e-6
    )
    other = create_model(MIXTURE, 4, one)
    tables = (np.asarray(model.decoder_embedding.table[...]) for model in (spread, other))
    assert not np.any(next(tables) == next(tables))


def test_no_two_parameters_start_alike(spread):
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(spread)) if leaf.ndim > 1]
    for index, kernel in enumerate(kernels):
        for other in kernels[index + 1 :]:
            assert kernel.shape != other.shape or not np.allclose(kernel, other)


def test_some_parameters_alone_have_the_values_of_the_whole(spread):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    whole = dict(nnx.to_flat_state(nnx.state(spread)))
    paths = [path for path in whole if "router" in path or path[0] == "gate"]
    found = create_parameters(MIXTURE, 3, mesh, paths)
    assert set(found) == set(paths) and len(paths) > 2
    for path, array in found.items():
        chex.assert_trees_all_close(array, whole[path][...], atol=1e-6)
        assert array.sharding == whole[path][...].sharding
    assert create_parameters(MIXTURE, 3, mesh, []) == {}
