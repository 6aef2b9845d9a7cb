import numpy as np

from moemoe_jax.interop.maps import CONVOLUTION, KERNEL, SAME, Rule, TensorMap, match
from moemoe_jax.interop.text_config import sparse_layers

MAP = TensorMap(
    rules=(
        Rule("block.{i}.q.weight", "encoder/stack/{i}/query/kernel", KERNEL),
        Rule("shared.weight", "embedding/table"),
        Rule("head.weight", "head/kernel", KERNEL),
    ),
    roles={"encoder": ("question", "context"), "embedding": ("table",)},
    ignored=("block.{i}.unused",),
    prefix="",
)


def test_names_go_both_ways_through_one_table():
    targets = [name for _, name in MAP.targets("block.11.q.weight")]
    assert targets == ["question/stack/11/query/kernel", "context/stack/11/query/kernel"]
    for target in targets:
        row, source = MAP.source(target)
        assert (row.transform, source) == (KERNEL, "block.11.q.weight")
    assert [name for _, name in MAP.targets("shared.weight")] == ["table/table"]
    # The role `head` stands for no part: its row does not count.
    assert not list(MAP.targets("head.weight"))
    assert MAP.source("encoder/stack/0/query/kernel") is None


def test_a_number_is_written_in_one_way_only():
    assert match("block.{i}.x", "block.10.x") == {"i": "10"}
    for name in ("block.01.x", "block.-1.x", "block..x", "block.1.x.y", "block.1axx", "block.1_x"):
        assert match("block.{i}.x", name) is None
    assert MAP.is_ignored("block.3.unused")
    assert not MAP.is_ignored("block.3.unused.too")


def test_a_role_without_a_name_and_a_prefix():
    alone = TensorMap((Rule("norm.weight", "vision/norm/scale"),), {"vision": ("",)}, prefix="x.")
    assert [name for _, name in alone.targets("x.norm.weight")] == ["norm/scale"]
    assert not list(alone.targets("norm.weight"))
    assert alone.source("norm/scale")[1] == "x.norm.weight"


def test_transforms_and_their_inverses():
    linear = np.arange(6).reshape(2, 3)  # [out 2, in 3]
    np.testing.assert_array_equal(KERNEL.forward(linear), [[0, 3], [1, 4], [2, 5]])
    image = np.zeros((7, 3, 4, 5))  # [out, in, height, width]
    assert CONVOLUTION.forward(image).shape == (4, 5, 3, 7) == CONVOLUTION.shape(image.shape)
    rng = np.random.default_rng(0)
    for transform, axes in ((SAME, 1), (SAME, 3), (KERNEL, 2), (CONVOLUTION, 4)):
        array = rng.normal(size=range(2, 2 + axes))
        there = transform.forward(array)
        np.testing.assert_array_equal(transform.inverse(there), array)
        assert transform.shape(array.shape) == there.shape
        assert transform.inverse_shape(there.shape) == array.shape
    assert KERNEL.shape((3,)) is None


def test_the_sparse_layers_of_a_switch_transformer():
    # switch-base: 12 layers, 6 of them sparse, every second one from the second on.
    assert sparse_layers(12, 6) == (1, 3, 5, 7, 9, 11)
    assert sparse_layers(12, 12) == tuple(range(12))
    assert sparse_layers(12, 3) == (1, 5, 9)
    assert sparse_layers(12, 13) == ()
    assert sparse_layers(12, 0) == (1,)  # as transformers reads it
