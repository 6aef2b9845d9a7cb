"""Devices of a TPU slice without the slice: libtpu describes them and compiles for them.

Importing this module imports no JAX: `ENVIRONMENT` must be set before that happens.
"""

import importlib.util
from typing import TYPE_CHECKING

from moemoe_jax.errors import UserError

if TYPE_CHECKING:
    import jax

LIBTPU = "libtpu==0.0.42.1"

# The machine's own arrays are on its CPU. Without the second, libtpu waits for a metadata server;
# without the third, two processes cannot have it. Programs for other machines need not be kept. The
# rest silences warnings.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def require_libtpu() -> None:
    """Refuses to go on without the compiler.

    Raises:
      UserError: with the command that installs it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs libtpu, which is not installed: "
            f"pip install {LIBTPU} (200 MB; it needs no TPU)"
        )


def devices(topology: str) -> list["jax.Device"]:
    """The devices of a slice, such as v5e:4x4, to compile for; nothing can run on them.

    Raises:
      UserError: when there is no such slice.
    """
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises several kinds
        reason = " ".join(str(error).split())
        raise UserError(
            f"--topology={topology}: libtpu knows no such slice ({reason[:200]}); "
            "try v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x2 or v6e:4x4"
        ) from None
    return described.devices
