"""Several processes that train or evaluate together: how they meet, and who writes.

All of them run the same program on the same settings. The first, number 0, alone says how it goes
and writes files that are not split among them; the work directory is on a disk that all share.
"""

import itertools
import os
import socket
import sys
import time

from absl import logging
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.clusters import Place

PEER_TIMEOUT = 100
START_TIMEOUT = 300
# Seconds that the others wait at the end for the first one, which may have a report to write.
END_TIMEOUT = 3600


def join(
    place: Place, peer_timeout: int = PEER_TIMEOUT, start_timeout: int = START_TIMEOUT
) -> None:
    """Meets the other processes; must come before anything that asks for devices.

    From here on, a process that ends without the others' consent takes them along: each ends with
    a status that is not 0, at the latest after `peer_timeout`.

    Args:
      place: of this process.
      peer_timeout: seconds without a sign of life after which a process counts as dead.
      start_timeout: seconds to wait for the others.

    Raises:
      UserError: they did not come, or the coordinator cannot be reached.
    """
    began = time.monotonic()
    if place.coordinator is not None:
        _wait_for_name(place.coordinator.rpartition(":")[0], start_timeout)
    complete = None not in (place.coordinator, place.count, place.index)
    left = start_timeout - (time.monotonic() - began)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=None if place.local is None else [place.local],
            cluster_detection_method="deactivate" if complete else None,
            initialization_timeout=max(1, round(left)),
            heartbeat_timeout_seconds=peer_timeout,
            shutdown_timeout_seconds=END_TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"process {place.index} of {place.count} could not meet the others at "
            f"{place.coordinator} ({place.cluster}) within {start_timeout} s: are all of them "
            f"started, and can that port be reached? ({cause})"
        ) from error
    barrier("all processes have started")


def connect(mesh: Mesh) -> None:
    """Opens the connections that the mesh's collectives take between processes on CPUs.

    There they are opened by whatever uses them first, and all processes must come to that within
    30 s: too short where one compiles for longer than another. Later uses wait as long as it takes.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    groups = [g for n in range(len(axes)) for g in itertools.combinations(axes, n + 1)]
    spec = PartitionSpec(tuple(axes))

    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def add(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(x, group) for group in groups]

    jax.block_until_ready(jax.jit(add)(np.ones(mesh.size, np.float32)))


def _wait_for_name(host: str, seconds: float) -> None:
    """Waits until a host name is known: that of a pod is so only once the pod runs.

    Raises:
      UserError: it did not become so in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the coordinator's host {host} is not known here ({error}): check "
                    "--coordinator, and that process 0 runs"
                ) from None
        time.sleep(1.0)


def is_primary() -> bool:
    """Whether this is the process that writes and says what is the same on all of them."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here; one alone does not wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def quieten_others() -> None:
    """Sends what any process but the first prints nowhere; errors still go to stderr."""
    if not is_primary():
        logging.set_verbosity(logging.ERROR)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open until the end


def lost_a_peer(error: BaseException) -> bool:
    """Whether an exception says that another process is gone."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    signs = ("Gloo", "NCCL", "coordination service", "CoordinationService", "heartbeat")
    return any(sign in str(error) for sign in signs)
