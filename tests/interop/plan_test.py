"""Whatever does not fit is named before anything is read, with what comes nearest."""

import ml_dtypes
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.interop.fill import with_noise
from moemoe_jax.interop.maps import KERNEL, Rule, TensorMap
from moemoe_jax.interop.plan import format_plan, make_plan
from moemoe_jax.interop.slots import Slot
from moemoe_jax.interop.weights import open_weights, write_weights

KERNEL_RULE = Rule("block.{i}.wi.weight", "part/stack/{i}/feed_forward/wi/kernel", KERNEL)
MAP = TensorMap(
    (KERNEL_RULE, Rule("norm.weight", "part/norm/scale")),
    {"part": ("a", "b")},
    same=(("copy.weight", "norm.weight"),),
    ignored=("unused.{i}",),
)


def slot(*shape):
    return Slot((), (), shape, np.dtype(np.float32))


SLOTS = {
    "a/stack/0/feed_forward/wi/kernel": slot(2, 3),
    "a/norm/scale": slot(4),
    "gate/kernel": slot(5),
}


def tensors():
    return {
        "block.0.wi.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "norm.weight": np.arange(4, dtype=np.float32),
    }


def plan(folder, arrays, slots=SLOTS, new=("gate/.*",)):
    described = [(name, array.shape, array.dtype) for name, array in arrays.items()]
    write_weights(folder / "weights", {"model_type": "t5"}, described, arrays.get)
    return make_plan([(open_weights(folder / "weights"), MAP)], slots, new)


def test_every_tensor_has_a_place_and_every_slot_a_tensor(tmp_path):
    arrays = tensors()
    arrays["norm.weight"] = arrays["norm.weight"].astype(ml_dtypes.bfloat16)
    arrays["unused.7"] = np.zeros(3, np.int32)
    found = plan(tmp_path, arrays)
    assert found.new == ["gate/kernel"]
    kernel = found.placements["a/stack/0/feed_forward/wi/kernel"].read()
    np.testing.assert_array_equal(kernel, [[0, 2, 4], [1, 3, 5]])
    scale = found.placements["a/norm/scale"].read()
    assert (scale.dtype, scale.tolist()) == (np.float32, [0, 1, 2, 3])
    rows = [line.split() for line in format_plan(found).splitlines()]
    assert rows == [
        ["tensor", "parameter", "how", "count"],
        ["block.{i}.wi.weight", "a/stack/{i}/feed_forward/wi/kernel", "copied", "1"],
        ["norm.weight", "a/norm/scale", "copied", "1"],
        ["unused.*", "-", "ignored", "1"],
        ["-", "gate/kernel", "new", "1"],
    ]


def test_two_parts_may_start_from_one_tensor(tmp_path):
    found = plan(tmp_path, tensors(), SLOTS | {"b/norm/scale": slot(4)})
    assert found.placements["b/norm/scale"].source == "norm.weight"


def test_a_dense_block_goes_to_each_expert_and_only_then_is_a_router_new(tmp_path):
    block = "a/stack/0/feed_forward"
    slots = {"a/norm/scale": slot(4), f"{block}/router/kernel": slot(2, 2)}
    experts = {f"{block}/wi/kernel/{e}": slot(2, 3) for e in range(2)}
    found = plan(tmp_path, tensors(), slots | experts)
    assert {found.placements[name].source for name in experts} == {"block.0.wi.weight"}
    assert found.new == [f"{block}/router/kernel"]
    dense = {"a/stack/0/feed_forward/wi/kernel": slot(2, 3)}
    with pytest.raises(UserError, match="router/kernel, which nothing in"):
        plan(tmp_path / "other", tensors(), slots | dense)


def test_an_alias_must_equal_what_it_stands_for_and_may_stand_in_for_it(tmp_path):
    arrays = tensors()
    arrays["copy.weight"] = arrays["norm.weight"].copy()
    assert plan(tmp_path / "a", arrays).ignored[0][1] == "copy.weight"
    arrays["copy.weight"][3] += 1
    with pytest.raises(UserError, match=r"other values in copy\.weight than in norm\.weight"):
        plan(tmp_path / "b", arrays)
    del arrays["norm.weight"]
    assert plan(tmp_path / "c", arrays).placements["a/norm/scale"].source == "copy.weight"


def without(name):
    return {key: array for key, array in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            tensors() | {"block.0.wo.weight": np.zeros(2, np.float32)},
            r"model\.safetensors has block\.0\.wo\.weight, which no model of the type",
        ),
        (
            tensors() | {"block.1.wi.weight": np.zeros((3, 2), np.float32)},
            r"has block\.1\.wi\.weight, which belongs to a/stack/1/feed_forward/wi/kernel, but",
        ),
        (without("norm.weight"), r"has no tensor norm\.weight for the parameter a/norm/scale"),
        (
            without("norm.weight") | {"normal.weight": np.zeros(4, np.float32)},
            r"has normal\.weight, .*; nearest: norm\.weight",
        ),
        (
            tensors() | {"block.0.wi.weight": np.zeros((2, 3), np.float32)},
            r"0\.wi\.weight in shape \(2, 3\), but by .*and the settings it is \(3, 2\)",
        ),
        (
            tensors() | {"norm.weight": np.zeros((1, 4), np.float32)},
            r"norm\.weight in shape \(1, 4\)",
        ),
        (
            tensors() | {"norm.weight": np.zeros(4, np.float64)},
            r"holds float64 in norm\.weight",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_nearest(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message) as error:
        plan(tmp_path, arrays)
    assert "\n" not in str(error.value)


def test_the_noise_of_a_copy_follows_from_its_name_and_the_seed():
    tensor = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    first, again = (with_noise(tensor, "wi/0", 0.1, 3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for other in (with_noise(tensor, "wi/1", 0.1, 3), with_noise(tensor, "wi/0", 0.1, 4)):
        assert not np.array_equal(first, other)
    assert abs((first - tensor).std() / (0.1 * tensor.std()) - 1) < 0.05
