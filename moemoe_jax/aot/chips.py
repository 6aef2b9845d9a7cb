"""What a chip can do, as its maker publishes it.

Sources of TPUs: the tables "System architecture" of docs.cloud.google.com/tpu/docs/v5e, …/v5p and
…/v6e. There the interconnect is given for both directions of all of a chip's links together (400,
1200 and 800 GB/s); half of it, shared among the axes of the torus, is what a chip sends along one.
Source of the H100: NVIDIA's "H100 Tensor Core GPU data sheet", the SXM column; its rate of dense
products is half of the one printed, which is with sparsity, and NVLink's 900 GB/s are both
directions together.
"""

import dataclasses

from moemoe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as topologies name it.
      hbm_bytes: of memory; the compiler keeps a little of it for itself.
      flops: bf16 matrix operations a second, at best.
      hbm_bandwidth: bytes a second, reads and writes together.
      ici_bandwidth: bytes a second that a chip sends along one axis of the torus, both ways round;
        over NVLink, to all others together.
    """

    name: str
    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16 * _GIB, 197e12, 819e9, 200e9 / 2),
        Chip("v5p", 95 * _GIB, 459e12, 2765e9, 600e9 / 3),
        Chip("v6e", 32 * _GIB, 918e12, 1600e9, 400e9 / 2),
    )
}
H100 = Chip("H100", 80 * _GIB, 989e12, 3.35e12, 900e9 / 2)  # nothing is compiled for it


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as v5e:4x4.

    Raises:
      UserError: for a chip without a profile, or a name of another form.
    """
    name, colon, shape = topology.partition(":")
    if name not in CHIPS or not colon or not all(part.isdigit() for part in shape.split("x")):
        raise UserError(
            f"--topology={topology}: write chip:shape, such as v5e:4x4, v5p:2x2x2 or v6e:4x4; "
            f"the chips are {', '.join(CHIPS)}"
        )
    return CHIPS[name]
