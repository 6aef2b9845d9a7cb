import collections

import chex
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from moemoe_jax.nn.params import LOGICAL_AXES, ExpertParam, RouterParam, param
from moemoe_jax.parallel import sharding
from moemoe_jax.parallel.axes import LOGICAL_RULES
from moemoe_jax.parallel.mesh import AXES, MeshConfig, make_mesh

ones = nnx.initializers.ones


class Toy(nnx.Module):
    """An embedding, a list of kernels, stacked experts, a router, a norm that fsdp cannot split."""

    def __init__(self, rngs):
        self.embedding = param(rngs, (6, 4), ones, ("vocab", "embed"))
        self.blocks = nnx.List([param(rngs, (4, 8), ones, ("embed", "mlp")) for _ in range(2)])
        self.square = param(rngs, (4, 4), ones, ("embed", "embed"))
        self.experts = param(rngs, (2, 4, 8), ones, ("expert", "embed", "mlp"), kind=ExpertParam)
        self.router = param(rngs, (4, 3), ones, ("embed", None), kind=RouterParam)
        self.odd = param(rngs, (5,), ones, ("embed",))


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, expert=2))


@pytest.fixture
def state():
    return nnx.state(Toy(nnx.Rngs(0)))


def test_the_table_knows_every_logical_axis():
    assert set(LOGICAL_RULES) == LOGICAL_AXES | {"batch"}
    assert {axis for rule in LOGICAL_RULES.values() for axis in rule} == set(AXES)


def test_parameters_get_the_sharding_that_the_table_says(mesh, state):
    places = sharding.param_shardings(state, mesh)
    expected = {
        "embedding": PartitionSpec("tensor", "fsdp"),
        "square": PartitionSpec("fsdp", None),  # an axis is used once
        "experts": PartitionSpec("expert", "fsdp", "tensor"),
        "router": PartitionSpec("fsdp", None),
        "odd": PartitionSpec(None),
    }
    for name, spec in expected.items():
        assert places[name].get_value().spec == spec, name
    assert places["blocks"][1].get_value().spec == PartitionSpec("fsdp", "tensor")
    placed = jax.device_put(state, places)
    shapes = jax.tree.map(lambda x: x.addressable_shards[0].data.shape, placed)
    assert shapes["experts"].get_value() == (1, 2, 8)
    chex.assert_trees_all_equal(placed, state)


def test_abstract_parameters_have_the_same_shardings(mesh, state):
    abstract = nnx.state(nnx.eval_shape(lambda: Toy(nnx.Rngs(0))))
    assert jax.tree.leaves(sharding.param_shardings(abstract, mesh)) == jax.tree.leaves(
        sharding.param_shardings(state, mesh)
    )


def test_a_dimension_that_does_not_divide_is_replicated_and_listed(mesh, state):
    lines = sharding.indivisible(state, mesh)
    assert lines == ["odd: dimension 0 (embed, 5) is replicated: fsdp=2 does not divide it"]


def test_tensor_cuts_hidden_channels_and_the_vocabulary_and_shares_the_batch(state):
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    placed = jax.device_put(state, sharding.param_shardings(state, mesh))
    shapes = jax.tree.map(lambda x: x.addressable_shards[0].data.shape, placed)
    assert shapes["blocks"][0].get_value() == (4, 4)
    assert shapes["experts"].get_value() == (2, 4, 4)
    assert shapes["embedding"].get_value() == (3, 4)
    rows = sharding.place_batch(np.arange(4), mesh)
    assert [shard.data.tolist() for shard in rows.addressable_shards] == [
        [row] for row in (0, 0, 1, 1, 2, 2, 3, 3)
    ]


def test_a_leaf_without_logical_axes_is_an_error(mesh):
    bare = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="bias has no logical axes"):
        sharding.param_shardings(bare, mesh)


@pytest.mark.parametrize("name", ["adam", "sgd", "masked", "parted", "adafactor"])
def test_optimizer_state_lies_where_its_parameter_lies(mesh, state, name):
    optimizer = {
        "adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        "sgd": optax.sgd(optax.constant_schedule(1e-3), momentum=0.9),
        "masked": optax.adamw(1e-3, mask=jax.tree.map(lambda x: x.ndim > 1, state)),
        "parted": optax.partition(
            {"adam": optax.adam(1e-3), "sgd": optax.sgd(1e-3)},
            jax.tree.map(lambda x: "adam" if x.ndim > 1 else "sgd", state),
        ),
        "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=4),
    }[name]
    places = sharding.param_shardings(state, mesh)
    by_optimizer = sharding.optimizer_shardings(optimizer, state, places, mesh)
    moments = jax.jit(optimizer.init, out_shardings=by_optimizer)(jax.device_put(state, places))
    assert jax.tree.structure(moments) == jax.tree.structure(optimizer.init(state))
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
        is_moment = any(part in str(path) for part in ("mu", "nu", "trace"))
        if is_moment and "experts" in str(path):
            found += 1
            assert leaf.sharding.spec == PartitionSpec("expert", "fsdp", "tensor")
        if "count" in str(path):
            assert leaf.sharding.is_fully_replicated
    assert found == {"adam": 2, "masked": 2, "parted": 2, "sgd": 1, "adafactor": 0}[name]


def test_a_batch_is_split_over_all_devices_or_replicated(mesh):
    batch = {
        "rows": np.arange(16.0).reshape(16, 1),
        "sources": {"title": np.zeros((8, 3), np.int32), "image": np.zeros((8, 2, 2, 3), np.uint8)},
        "question_ids": np.arange(10).reshape(5, 2),
        "scalar": np.float32(2.0),
    }
    placed = sharding.place_batch(batch, mesh)
    chex.assert_trees_all_equal(placed, batch)
    assert placed["rows"].sharding == sharding.batch_sharding(mesh)
    assert placed["rows"].addressable_shards[0].data.shape == (2, 1)
    assert placed["sources"]["image"].addressable_shards[0].data.shape == (1, 2, 2, 3)
    assert placed["sources"]["image"].dtype == jnp.uint8
    assert placed["question_ids"].sharding.is_fully_replicated
    assert placed["scalar"].sharding.is_fully_replicated
    # Each device holds other rows: together they are the batch, once.
    starts = {shard.index[0].start or 0 for shard in placed["rows"].addressable_shards}
    assert starts == set(range(0, 16, 2))


def test_a_process_makes_the_rows_of_its_devices(mesh):
    table, rows = np.arange(16).reshape(8, 2), np.arange(16.0).reshape(16, 1)
    batch = {"question_ids": table, "sources": {"title": rows}}
    assert sharding.local_rows(mesh, 16) == tuple(range(16))  # one process has all devices
    placed = sharding.place_batch(batch, mesh, products=16)
    chex.assert_trees_all_equal(placed, batch)
    assert placed["sources"]["title"].sharding == sharding.batch_sharding(mesh)
    # Ten rows do not divide among eight devices: each holds all.
    assert sharding.local_rows(mesh, 10) == tuple(range(10))
    whole = sharding.place_batch({"x": rows[:10]}, mesh, products=10)["x"]
    assert whole.sharding.is_fully_replicated
    chex.assert_trees_all_equal(whole, rows[:10])


def test_the_rows_of_a_process_need_not_be_a_slice(monkeypatch):
    # Process 1 of the table below has devices 1 and 3 of a mesh that counts 0, 1, 2, 3.
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    Device = collections.namedtuple("Device", "id process_index")
    whole = jax.sharding.NamedSharding.devices_indices_map
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "devices_indices_map",
        lambda self, shape: {
            Device(device.id, process_index=device.id % 2): index
            for device, index in whole(self, shape).items()
        },
    )
    held = sharding.process_rows.__wrapped__(mesh, 8)
    assert held == {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}
    everything = tuple(range(6))  # does not divide
    assert sharding.process_rows.__wrapped__(mesh, 6) == {0: everything, 1: everything}


def test_sizes_for_the_eye():
    assert [sharding.size_text(n) for n in (0, 1536, 2**20, 1468 * 2**20 + 2**18)] == [
        "0 B", "1,536 B", "1.0 MiB", "1,468.2 MiB",
    ]  # fmt: skip


def test_the_table_counts_bytes_per_device(mesh, state):
    lines = sharding.describe(state, mesh).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert rows["experts"].endswith(" 64 B")  # 1 * 2 * 8 float32
    assert "(expert, fsdp, tensor)" in rows["experts"]
    # embedding 6*2, blocks 2 * 2*8, square 2*4, experts 1*2*8, router 2*3, odd 5: 79 floats
    assert rows["total"].endswith(" 316 B")
    assert rows["blocks/{0,1}"].endswith(" 2 x 64 B")


def test_a_step_on_the_mesh_equals_a_step_on_one_device(mesh, state):
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

    def loss(state, x):
        hidden = jnp.einsum("bd,edf->bef", x @ state["square"][...], state["experts"][...])
        return jnp.mean(jnp.tanh(hidden) ** 2)

    alone = jax.value_and_grad(loss)(state, rows)
    placed = jax.device_put(state, sharding.param_shardings(state, mesh))
    spread = jax.jit(jax.value_and_grad(loss))(placed, sharding.place_batch(rows, mesh))
    chex.assert_trees_all_close(jax.device_get(spread), jax.device_get(alone), atol=1e-6)
