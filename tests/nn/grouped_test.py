"""The TPU's kernels, interpreted, against products of one expert after the other."""

import functools

import chex
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import dispatch, grouped, grouped_kernels
from moemoe_jax.nn.blocks import lay_out
from moemoe_jax.nn.grouped import grouped_dot
from moemoe_jax.nn.routing import Routing

B, INPUT, OUTPUT, E = 4, 6, 8, 4
ROUTINGS = {
    "uneven": [5, 1, 9, 3],
    "empty": [0, 7, 0, 0],
    "all to the last": [0, 0, 0, 18],
    "all to the first": [18, 0, 0, 0],
    "less than a block": [1, 0, 2, 0],
    "none": [0, 0, 0, 0],
}


@pytest.fixture
def kernels(monkeypatch):
    """Runs what TPUs run."""
    monkeypatch.setattr(grouped, "_for_platform", lambda tpu, other, *arrays: tpu(*arrays))


@pytest.fixture
def interpreted(kernels, monkeypatch):
    call = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(pl, "pallas_call", call)


@pytest.fixture
def small_tiles(monkeypatch):
    """Cuts every dimension: products are sums of several, results in several parts."""
    monkeypatch.setattr(grouped_kernels, "_LANES", 2)
    monkeypatch.setattr(grouped_kernels, "ROOM", 0)


def problem(load, dtype="float32"):
    """Random rows, zeros where a queue has ended, kernels, something along which to go back."""
    load = np.array(load)
    count = -(-18 // B) + E - 1
    blocks, first = lay_out(jnp.asarray(load), count, B)
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (count, B, INPUT))
    place = (np.arange(count) - np.asarray(first)[blocks.owner])[:, None] * B + np.arange(B)
    held = place < load[np.asarray(blocks.owner)][:, None]
    rows = jnp.where(held[..., None], rows, 0)
    kernel = jax.random.normal(keys[1], (E, INPUT, OUTPUT))
    along = jax.random.normal(keys[2], (count, B, OUTPUT))
    along = jnp.where(held[..., None], along, 0)
    return blocks, *(x.astype(dtype) for x in (rows, kernel, along))


def slowly(blocks, rows, kernel, along):
    """The product and its gradients, one block after the other."""
    rows, kernel, along = (np.asarray(x, np.float32) for x in (rows, kernel, along))
    by_kernel = np.zeros_like(kernel)
    for n, e in enumerate(np.asarray(blocks.owner)):
        by_kernel[e] += rows[n].T @ along[n]
    owned = kernel[np.asarray(blocks.owner)]
    return rows @ owned, along @ owned.transpose(0, 2, 1), by_kernel


def check(load, dtype="float32"):
    blocks, rows, kernel, along = problem(load, dtype)
    product, pull = jax.vjp(lambda rows, kernel: grouped_dot(rows, kernel, blocks), rows, kernel)
    found = (product, *pull(along))
    chex.assert_type(found, jnp.dtype(dtype))
    bound = {"atol": 1e-5} if dtype == "float32" else {"atol": 0.05, "rtol": 0.02}
    found = [np.asarray(x, np.float32) for x in found]
    chex.assert_trees_all_close(found, list(slowly(blocks, rows, kernel, along)), **bound)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("load", ROUTINGS.values(), ids=ROUTINGS)
def test_blocks_one_after_the_other(load, dtype):
    check(load, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("load", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.usefixtures("interpreted")
def test_kernels(load, dtype):
    check(load, dtype)


@pytest.mark.parametrize("load", [ROUTINGS["uneven"], ROUTINGS["empty"]])
@pytest.mark.usefixtures("interpreted", "small_tiles")
def test_kernels_in_small_tiles(load):
    check(load)


@pytest.mark.usefixtures("kernels", "small_tiles")
def test_kernels_leave_nothing_as_they_found_it():
    # This interpreter has the chip's memories, and what was never written is not a number.
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        check(ROUTINGS["empty"])


@pytest.mark.parametrize("tokens", [5, 70])
@pytest.mark.usefixtures("interpreted")
def test_the_back_end_on_kernels_equals_the_oracle_in_value_and_gradient(tokens):
    experts, k, width, hidden = 4, 2, 8, 16
    keys = jax.random.split(jax.random.key(0), 5)
    chosen = jax.lax.top_k(jax.random.normal(keys[0], (tokens, experts)), k)[1]
    weights = jax.random.uniform(keys[1], (tokens, k))
    routing = Routing(chosen, weights, jnp.zeros((tokens, experts)), jnp.zeros((tokens, experts)))
    params = {
        "wi": jax.random.normal(keys[2], (experts, width, hidden)) * width**-0.5,
        "wo": jax.random.normal(keys[3], (experts, hidden, width)) * hidden**-0.5,
    }
    x, valid = jax.random.normal(keys[4], (tokens, width)), jnp.arange(tokens) != 3

    def outcome(backend):
        def loss(params, x):
            def run(rows, numbers, dot):
                inner = jax.nn.relu(dot(rows, params["wi"])) * jnp.cos(numbers)[..., None]
                return dot(inner, params["wo"])

            y, _ = dispatch.mix(run, x, routing, valid, backend=backend)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    chex.assert_trees_all_close(outcome("grouped"), outcome("dense"), atol=2e-5, rtol=1e-5)


def traced(blocks=23, size=16, dtype="bfloat16"):
    """The product with its gradients at the sizes of a layer, of zeros."""
    rows, kernel = jnp.zeros((blocks, size, 768), dtype), jnp.zeros((8, 768, 2048), dtype)
    layout, _ = lay_out(jnp.zeros(8, jnp.int32), blocks, size)

    def run(rows, kernel, layout):
        product, pull = jax.vjp(lambda *a: grouped_dot(*a, layout), rows, kernel)
        return product, pull(product)

    return jax.jit(run).trace(rows, kernel, layout)


@pytest.mark.parametrize(("blocks", "size"), [(23, 16), (45, 256)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_is_made_for_its_devices(blocks, size, dtype):
    trace = traced(blocks, size, dtype)
    tpu = trace.lower(lowering_platforms=("tpu",)).as_text()
    assert tpu.count("tpu_custom_call") == 3 and "stablehlo.while" not in tpu
    cpu = trace.lower().as_text()
    assert "tpu_custom_call" not in cpu and "stablehlo.while" in cpu


@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize(("first", "second"), [(768, 2048), (1024, 4096), (4096, 1024)])
def test_tiles_cut_evenly_and_fit(first, second, item):
    def held(high, wide):
        return 2 * item * 256 * (high + wide) + 2 * item * high * wide + 4 * 256 * wide

    high, wide = grouped_kernels._tiles(first, second, held, lambda high, wide: 0)
    assert held(high, wide) <= grouped_kernels.ROOM
    assert first % high == second % wide == high % 128 == wide % 128 == 0
