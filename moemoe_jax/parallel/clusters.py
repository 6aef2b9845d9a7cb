"""Which process of how many this one is, as flags say it or the cluster that started it.

Every cluster tells its processes through environment variables, but for Cloud TPU machines, whose
metadata server is asked. A process that nobody told anything about others is alone.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib.util
import os
from pathlib import Path
import re
import urllib.error
import urllib.request

from moemoe_jax.errors import UserError

PORT = 8476  # of the coordinator, where the cluster has none to say
_PORTS = 61440, 4096  # first and number of those that a job's number picks from
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_REMEDY = "give --coordinator=host:port, --processes and --process, or --processes=1 to run alone"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among several.

    Attributes:
      cluster: what said so, for messages.
      coordinator: "host:port" of process 0; None where it has to be asked of the cluster.
      count: how many processes there are; None likewise.
      index: which one this is, from 0.
      local: which of its machine's processes this is, where each is to take one GPU; None takes
        all devices of the machine.
    """

    cluster: str
    coordinator: str | None
    count: int | None
    index: int | None
    local: int | None = None


Metadata = Callable[[str], str | None]


def locate(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environ: Mapping[str, str] = os.environ,
    metadata: Metadata | None = None,
) -> Place | None:
    """Finds out where this process stands; None where it is alone.

    Args:
      coordinator: "host:port" of process 0.
      count: how many processes; 1 says that this one is alone, whatever the cluster says.
      index: which one this is. Each of the three stands above what the cluster says.
      environ: where clusters leave word.
      metadata: reads an attribute of a Cloud TPU machine, None where it has no such attribute.

    Raises:
      UserError: what is known is not enough, or makes no sense; names what is missing.
    """
    if count is not None and count < 1:
        raise UserError(f"--processes={count}: there is at least one")
    if count == 1:
        if index:
            raise UserError(f"--process={index} with --processes=1: a process alone is number 0")
        return None
    given = {"coordinator": coordinator, "count": count, "index": index}
    given = {name: value for name, value in given.items() if value is not None}
    # With all three given the cluster is not asked, as where its word is of no use.
    found = None if len(given) == 3 else detect(environ, metadata)
    if found is None and not given:
        return None
    place = dataclasses.replace(found or Place("the flags", None, None, None), **given)
    if place.count == 1:
        return None
    _check(place)
    return place


def _check(place: Place) -> None:
    names = {"coordinator": "--coordinator", "count": "--processes", "index": "--process"}
    missing = [flag for name, flag in names.items() if getattr(place, name) is None]
    # Kubernetes itself can be asked for all that its variables do not say.
    if missing and not (place.cluster == "Kubernetes" and _has_kubernetes()):
        extra = ", or install the package kubernetes" if place.cluster == "Kubernetes" else ""
        raise UserError(
            f"{place.cluster} did not say {' and '.join(missing)} of this process: add "
            f"{'it' if len(missing) == 1 else 'them'}{extra}, or give --processes=1 to run alone"
        )
    if place.coordinator is not None and not re.fullmatch(r"\S+:\d{1,5}", place.coordinator):
        raise UserError(
            f"--coordinator={place.coordinator}: write host:port, the machine of process 0 and a "
            "port that is free there"
        )
    if None not in (place.count, place.index) and not 0 <= place.index < place.count:
        raise UserError(f"process {place.index} of {place.count}: count them from 0")


def detect(environ: Mapping[str, str], metadata: Metadata | None = None) -> Place | None:
    """What the cluster says, as far as it says it; None where there is none.

    Open MPI comes before Slurm, which often starts it, and all come before Cloud TPU machines.

    Raises:
      UserError: for a variable that is missing or not a number, or a job started in the wrong way.
    """
    try:
        for one in (_open_mpi, _slurm, _gke_tpu, _skypilot, _kubernetes):
            place = one(environ)
            if place is not None:
                return place
        if metadata is None and not _is_tpu_machine(environ):
            return None
        return _cloud_tpu(metadata or _ask_metadata)
    except KeyError as error:
        raise UserError(f"the cluster did not set {error.args[0]}; {_REMEDY}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"what the cluster says makes no sense ({error}); {_REMEDY}") from None


def _port(number: int) -> int:
    return _PORTS[0] + number % _PORTS[1]


def _local(environ: Mapping[str, str], rank: str, several: bool) -> int | None:
    """The number of the GPU to take; None with the machine to itself, or with one GPU in sight."""
    bound = environ.get("CUDA_VISIBLE_DEVICES")
    if not several or (bound is not None and "," not in bound):
        return None
    return int(environ[rank])


def _open_mpi(environ: Mapping[str, str]) -> Place | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    count, index = int(environ["OMPI_COMM_WORLD_SIZE"]), int(environ["OMPI_COMM_WORLD_RANK"])
    # "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", up to Open MPI 4.
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://(\[[^,\]]+)", uri)
    coordinator = None
    if host:
        job = int(uri.split(".", 1)[0]) // 2**12
        coordinator = f"{host[1] or host[2] + ']'}:{_port(job)}"
    several = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")) > 1
    local = _local(environ, "OMPI_COMM_WORLD_LOCAL_RANK", several)
    return Place("Open MPI", coordinator, count, index, local)


def _slurm(environ: Mapping[str, str]) -> Place | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST")
    count = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    if count == 1:
        return None
    if nodes is None or "SLURM_PROCID" not in environ:
        raise UserError(
            f"this Slurm job has {count} tasks, but srun did not start this process: start it with "
            "srun, or give --processes=1 to run alone"
        )
    step = environ.get("SLURM_STEP_ID", "0")
    job = int(environ["SLURM_JOB_ID"]) + (int(step) if step.isdigit() else 0)
    several = count > int(environ.get("SLURM_STEP_NUM_NODES", "1"))
    local = _local(environ, "SLURM_LOCALID", several)
    index = int(environ["SLURM_PROCID"])
    return Place("Slurm", f"{first_node(nodes)}:{_port(job)}", count, index, local)


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: `rack[2-3]n[07,09],x1` begins with `rack2n07`.

    Raises:
      ValueError: there is none.
    """
    first = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes)
    if first is None:
        raise ValueError(f"no host in the node list {nodes!r}")
    return re.sub(r"\[([^],-]+)[^\]]*\]", r"\1", first[0])


def _gke_tpu(environ: Mapping[str, str]) -> Place | None:
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not hosts:
        return None
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    names = [host.split(":")[0] for host in hosts.split(",")]
    if len(names) * slices == 1:
        return None
    return _tpu_slices(
        "Cloud TPU (GKE)",
        names,
        int(environ["TPU_WORKER_ID"]),
        slices,
        int(environ.get("MEGASCALE_SLICE_ID") or 0),
        environ.get("MEGASCALE_COORDINATOR_ADDRESS"),
    )


def _tpu_slices(
    cluster: str, hosts: list[str], worker: int, slices: int, slice_index: int, first: str | None
) -> Place:
    """Processes are counted slice by slice; `first` is the host of the first of all slices."""
    host = hosts[0] if slices == 1 else (first or "").split(":")[0]
    coordinator = f"{host}:{PORT}" if host else None
    return Place(cluster, coordinator, len(hosts) * slices, slice_index * len(hosts) + worker)


def _skypilot(environ: Mapping[str, str]) -> Place | None:
    count = int(environ.get("SKYPILOT_NUM_NODES") or 1)
    if count == 1:
        return None
    first = (environ.get("SKYPILOT_NODE_IPS") or "").split()
    coordinator = f"{first[0]}:{PORT}" if first else None
    return Place("SkyPilot", coordinator, count, int(environ["SKYPILOT_NODE_RANK"]))


def _kubernetes(environ: Mapping[str, str]) -> Place | None:
    # Every pod has the first; only those of an indexed Job (or a JobSet) are one of several.
    if "KUBERNETES_SERVICE_HOST" not in environ or "JOB_COMPLETION_INDEX" not in environ:
        return None
    return Place("Kubernetes", None, None, int(environ["JOB_COMPLETION_INDEX"]))


def _has_kubernetes() -> bool:
    return importlib.util.find_spec("kubernetes") is not None


def _is_tpu_machine(environ: Mapping[str, str]) -> bool:
    platforms = environ.get("JAX_PLATFORMS", "")
    wanted = not platforms or "tpu" in platforms.split(",")
    devices = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    asked = "TPU_SKIP_MDS_QUERY" not in environ
    return wanted and devices and asked and importlib.util.find_spec("libtpu") is not None


def _cloud_tpu(metadata: Metadata) -> Place | None:
    endpoints = metadata("worker-network-endpoints")
    if not endpoints:
        return None
    # Each is a host, or in an older form name:id:address.
    hosts = [part.split(":")[-1] for part in endpoints.split(",")]
    # A line each: MEGASCALE_NUM_SLICES: '2'
    found = dict(re.findall(r"(\w+)\s*:\s*'([^'\n]*)'", metadata("tpu-env") or ""))
    slices = int(found.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices == 1:
        return None
    return _tpu_slices(
        "Cloud TPU",
        hosts,
        int(metadata("agent-worker-number") or 0),
        slices,
        int(found.get("MEGASCALE_SLICE_ID") or 0),
        found.get("MEGASCALE_COORDINATOR_ADDRESS"),
    )


def _ask_metadata(name: str) -> str | None:
    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        cause = str(error)
    except OSError as error:
        cause = str(getattr(error, "reason", error))
    raise UserError(
        f"this machine has a TPU, but does not say whether it is one of several ({cause}); "
        f"{_REMEDY}"
    )
