"""The device mesh: four named axes over all devices.

`data` holds copies of the parameters, `fsdp` splits them and gathers them where they are used,
`expert` spreads the experts of a mixture layer, `tensor` cuts heads, hidden channels and the
vocabulary. A batch is split over the first three together; devices along `tensor` share theirs.

Slices of accelerators are joined by a slow network. They lie along `data`, which talks least: a
gradient once a step.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh
import numpy as np

from moemoe_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The size of each mesh axis; at most one is -1, which means "the devices that are left".

    Attributes:
      data: copies of the parameters, over all slices together.
      fsdp: parts that every parameter is split into.
      expert: parts that the experts of a mixture layer are dealt into.
      tensor: parts of heads, hidden channels and vocabulary.
      slices: slices that `data` spans; -1 is as many as the devices say that they lie in. More
        than that cuts devices of one slice into so many groups, to try a layout out.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    slices: int = -1

    def __post_init__(self):
        if any(size != -1 and size < 1 for size in self.sizes) or self.sizes.count(-1) > 1:
            raise UserError(
                f"mesh {self}: sizes must be at least 1, and only one may be -1 (the rest)"
            )
        if self.slices != -1 and self.slices < 1:
            raise UserError(
                f"mesh.slices is {self.slices}; give their number, or -1 to ask the devices"
            )

    def __str__(self) -> str:
        return " ".join(f"{axis}={n}" for axis, n in zip(AXES, self.sizes, strict=True))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The size of each of `AXES`, as it was given."""
        return self.data, self.fsdp, self.expert, self.tensor

    def resolve(self, device_count: int) -> tuple[int, ...]:
        """Returns the size of each of `AXES` on `device_count` devices.

        Raises:
          UserError: when their product is not `device_count`.
        """
        known = math.prod(size for size in self.sizes if size != -1)
        if -1 not in self.sizes and known != device_count:
            raise UserError(
                f"mesh {self} needs {known} devices, but there are {device_count}: "
                "set one axis to -1 to take the rest"
            )
        if device_count % known:
            raise UserError(
                f"mesh {self}: {known} does not divide the {device_count} "
                f"device{'s' * (device_count > 1)}; choose sizes whose product does"
            )
        return tuple(device_count // known if size == -1 else size for size in self.sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as a mesh with the axes `AXES`.

    The axis types are Auto: the compiler places intermediate values, guided by the shardings of
    the parameters and the batch, and by `axes.constrain`.

    Args:
      config: the size of each axis.
      devices: all devices of all processes, unless told otherwise; those of a topology to compile
        for will do.

    Raises:
      UserError: when the sizes do not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    data, *others = config.resolve(len(devices))
    slices = _slices(config.slices, devices)
    if data % len(slices):
        raise UserError(
            f"mesh data={data} does not divide among {len(slices)} slices; each holds whole copies "
            f"of the parameters: make data a multiple of {len(slices)}"
        )
    shape = (data // len(slices), *others)
    # Physical axes may be split: a 16x16 torus is no (64, 4) otherwise.
    parts = [
        mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True)
        for part in slices
    ]
    return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh without its devices, to plan with, whatever devices are here.

    An axis of -1 takes those that are here; where these do not come out even, as a laptop's do not
    for a pod, it is 1.
    """
    given = math.prod(size for size in config.sizes if size != -1)
    here = len(jax.devices()) if -1 in config.sizes else given
    sizes = config.resolve(given if here % given else here)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(wanted: int, devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by slice: by their own account, or else cut into `wanted` equal groups."""
    indices = [getattr(device, "slice_index", 0) for device in devices]
    found = sorted(set(indices))
    if len(found) == 1 and wanted > 1:
        if len(devices) % wanted:
            raise UserError(
                f"mesh.slices {wanted} does not divide the {len(devices)} devices; "
                "-1 takes the slices that there are"
            )
        size = len(devices) // wanted
        return [list(devices[start : start + size]) for start in range(0, len(devices), size)]
    if wanted not in (-1, len(found)):
        raise UserError(
            f"mesh.slices is {wanted}, but the devices lie in {len(found)} slices: "
            f"set mesh.slices={len(found)}, or -1"
        )
    return [[d for d, i in zip(devices, indices, strict=True) if i == index] for index in found]
