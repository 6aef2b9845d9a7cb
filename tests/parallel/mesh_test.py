import jax
from jax.sharding import AxisType
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh


def test_minus_one_takes_the_rest():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, expert=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_the_default_is_pure_data_parallelism_on_any_number_of_devices():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "expert": 1}
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(one.shape) == {"data": 1, "fsdp": 1, "expert": 1}


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
