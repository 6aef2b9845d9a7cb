from flax import nnx
import jax
import numpy as np

from moemoe_jax.nn.params import Keys


def test_keys_are_those_of_flax():
    def three(rngs):
        return jax.random.key_data(jax.numpy.stack([rngs.params() for _ in range(3)]))

    found = three(Keys(jax.random.key(7)))
    np.testing.assert_array_equal(found, three(nnx.Rngs(params=jax.random.key(7))))
    assert len({tuple(row) for row in np.asarray(found)}) == 3
