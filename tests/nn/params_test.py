from flax import nnx
import jax
import numpy as np

from moemoe_jax.nn.params import Keys, PlacedKeys, normal, param
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh


def test_keys_are_those_of_flax():
    def three(rngs):
        return jax.random.key_data(jax.numpy.stack([rngs.params() for _ in range(3)]))

    found = three(Keys(jax.random.key(7)))
    np.testing.assert_array_equal(found, three(nnx.Rngs(params=jax.random.key(7))))
    assert len({tuple(row) for row in np.asarray(found)}) == 3


def test_placed_keys_draw_what_keys_do_where_it_belongs():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    shape, axes = (4, 8, 6), ("expert", "embed", None)

    def three(keys):
        return [param(keys, shape, normal(0.5), axes)[...] for _ in range(3)]

    placed, plain = three(PlacedKeys(jax.random.key(7), mesh)), three(Keys(jax.random.key(7)))
    for found, wanted in zip(placed, plain, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert found.addressable_shards[0].data.shape == (2, 4, 6)


def test_parameters_that_are_drawn_alike_share_a_program():
    traced = []

    def init(key, shape, dtype):
        traced.append(shape)
        return jax.random.normal(key, shape, dtype)

    keys = PlacedKeys(jax.random.key(7), make_mesh(MeshConfig()))
    for shape in [(4, 8), (4, 8), (8, 4), (4, 8)]:
        param(keys, shape, init, (None, None))
    assert traced == [(4, 8), (8, 4)]
    assert normal(0.5) is normal(0.5)
