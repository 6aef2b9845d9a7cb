import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.training.checksums import _odd_numbers, checksum, checksums

P = jax.P


def by_hand(array):
    """The definition, element by element, in Python's own numbers."""
    odd = [[int(x) for x in _odd_numbers(d, 0, n)] for d, n in enumerate(array.shape)]
    total = 0
    for place in np.ndindex(array.shape):
        bits = int.from_bytes(array[place].tobytes(), "little")
        for dim, index in enumerate(place):
            bits *= odd[dim][index]
        total += bits
    return f"{total % 2**64:016x}"


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4), (1, 2, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float64"])
def test_it_is_the_sum_over_all_elements(shape, dtype):
    array = np.random.default_rng(0).normal(size=shape).astype(jnp.dtype(dtype))
    assert checksum(array) == by_hand(array)


def test_the_multipliers_are_odd_and_all_different():
    numbers = np.concatenate([_odd_numbers(dim, 0, 10_000) for dim in range(3)])
    assert (numbers % 2 == 1).all()
    assert len(set(numbers.tolist())) == 30_000
    assert (_odd_numbers(1, 40, 50) == _odd_numbers(1, 0, 100)[40:50]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_every_single_bit_counts(dtype):
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(jnp.dtype(dtype))
    raw = np.frombuffer(array.tobytes(), np.uint8)
    found = {checksum(array)}
    for bit in range(raw.size * 8):
        flipped = raw.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        found.add(checksum(flipped.view(array.dtype).reshape(array.shape)))
    assert len(found) == 1 + raw.size * 8


def test_places_count():
    array = np.random.default_rng(0).normal(size=(6, 6)).astype("float32")
    zeros = array.copy()
    zeros[2:4] = 0
    others = [array.T, array[::-1], np.roll(array, 1), zeros, array.reshape(4, 9), array[:5]]
    assert len({checksum(one) for one in [array, *others]}) == 1 + len(others)


def test_it_does_not_depend_on_the_mesh():
    array = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    specs = [P(), P("fsdp"), P("data", "fsdp"), P(("fsdp", "data"), "expert"), P(None, "data")]
    leaves = {
        str(spec): jax.device_put(array, jax.sharding.NamedSharding(mesh, spec)) for spec in specs
    }
    leaves |= {"numpy": array, "one device": jnp.asarray(array)}
    assert set(checksums(leaves).values()) == {checksum(array)}
