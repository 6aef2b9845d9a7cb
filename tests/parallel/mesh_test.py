import dataclasses

import jax
from jax.sharding import AxisType
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.mesh import MeshConfig, abstract_mesh, make_mesh


def test_minus_one_takes_the_rest():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, expert=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 2, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    tensor = make_mesh(MeshConfig(data=2, tensor=-1))
    assert dict(tensor.shape) == {"data": 2, "fsdp": 1, "expert": 1, "tensor": 4}


def test_the_default_is_pure_data_parallelism_on_any_number_of_devices():
    assert make_mesh(MeshConfig()).devices.shape == (8, 1, 1, 1)
    assert make_mesh(MeshConfig(), jax.devices()[:1]).devices.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 2, "fsdp": 2, "expert": 1}, "needs 4 devices, but there are 8: set one axis"),
        ({"data": -1, "fsdp": 3}, "3 does not divide the 8 devices"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("sizes", [{"data": 0}, {"fsdp": -2}, {"data": -1, "expert": -1}])
def test_nonsense_is_refused_before_there_are_devices(sizes):
    with pytest.raises(UserError, match="only one may be -1"):
        MeshConfig(**sizes)


# --- slices ---------------------------------------------------------------------------------------


def numbered(mesh):
    return np.vectorize(lambda device: device.id)(mesh.devices)


@dataclasses.dataclass(frozen=True)
class Device:
    """Says which slice it lies in, as those of accelerators do."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_slices_lie_along_data_and_everything_else_within_one():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, slices=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "expert": 1, "tensor": 1}
    # Devices 0-3 are one slice, 4-7 the other.
    np.testing.assert_array_equal(numbered(mesh)[..., 0, 0], [[0, 1], [2, 3], [4, 5], [6, 7]])


def test_the_devices_say_which_slice_they_lie_in():
    devices = [Device(number, number % 2) for number in range(4)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices)
    np.testing.assert_array_equal(numbered(mesh)[..., 0, 0], [[0, 2], [1, 3]])
    with pytest.raises(UserError, match=r"lie in 2 slices: set mesh.slices=2, or -1"):
        make_mesh(MeshConfig(data=2, fsdp=2, slices=1), devices)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 1, "fsdp": 8, "slices": 2}, "data=1 does not divide among 2 slices"),
        ({"slices": 3}, "mesh.slices 3 does not divide the 8 devices"),
        ({"slices": 0}, "mesh.slices is 0; give their number, or -1"),
    ],
)
def test_slices_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))


def test_a_mesh_can_be_planned_without_its_devices():
    assert abstract_mesh(MeshConfig(data=64, expert=4)).size == 256
    assert abstract_mesh(MeshConfig(expert=4)).shape == make_mesh(MeshConfig(expert=4)).shape


def test_a_mesh_that_does_not_fit_here_can_be_planned():
    assert abstract_mesh(MeshConfig(fsdp=3)).shape_tuple[:2] == (("data", 1), ("fsdp", 3))
    assert abstract_mesh(MeshConfig(data=16, tensor=-1)).size == 16
    assert abstract_mesh(MeshConfig(data=4, fsdp=3)).size == 12
