"""The linear map: its own gradient rule against autodiff's."""

import chex
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.nn.linear import matmul


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_are_those_of_a_plain_product(batch, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*batch, 4), dtype)
    kernel = jax.random.normal(keys[1], (4, 5), dtype)
    probe = jax.random.normal(keys[2], (*batch, 5), dtype)

    def found(product):
        value, gradients = jax.value_and_grad(
            lambda x, w: jnp.sum((product(x, w) * probe).astype(jnp.float32)), argnums=(0, 1)
        )(x, kernel)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, (x, kernel))
        return value, gradients

    tolerance = 1e-6 if dtype == "float32" else 2e-2
    chex.assert_trees_all_close(found(matmul), found(jnp.matmul), rtol=tolerance, atol=tolerance)
