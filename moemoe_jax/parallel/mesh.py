"""The device mesh: three named axes over all devices.

`data` holds copies of the parameters, `fsdp` splits them and gathers them where they are used,
`expert` spreads the experts of a mixture layer. A batch is split over all three together.
"""

import dataclasses
import math

import jax

from moemoe_jax.errors import UserError

AXES = ("data", "fsdp", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The size of each mesh axis; at most one is -1, which means "the devices that are left"."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.expert)
        if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh {_text(sizes)}: sizes must be at least 1, and only one may be -1 (the rest)"
            )

    def resolve(self, device_count: int) -> tuple[int, int, int]:
        """Returns the sizes of (data, fsdp, expert) on `device_count` devices.

        Raises:
          UserError: when their product is not `device_count`.
        """
        sizes = (self.data, self.fsdp, self.expert)
        known = math.prod(size for size in sizes if size != -1)
        if -1 not in sizes and known != device_count:
            raise UserError(
                f"mesh {_text(sizes)} needs {known} devices, but there are {device_count}: "
                "set one axis to -1 to take the rest"
            )
        if device_count % known:
            raise UserError(
                f"mesh {_text(sizes)}: {known} does not divide the {device_count} devices; "
                f"choose sizes whose product divides {device_count}"
            )
        data, fsdp, expert = (device_count // known if s == -1 else s for s in sizes)
        return data, fsdp, expert


def _text(sizes: tuple[int, ...]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays the devices out as a mesh with axes `data`, `fsdp`, `expert`.

    The axis types are Auto: the compiler places intermediate values, guided by the shardings of
    the parameters and the batch.

    Args:
      config: the size of each axis.
      devices: all devices of all processes, unless told otherwise.

    Raises:
      UserError: when the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        config.resolve(len(devices)),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
        devices=devices,
    )
