"""Where a process stands, as the variables of each kind of cluster say it."""

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.parallel import clusters
from moemoe_jax.parallel.clusters import Place, first_node, locate

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "9",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "12288.0;tcp://10.96.0.1,10.148.0.1:34911",
}
GKE = {"TPU_WORKER_HOSTNAMES": "t-0.job,t-1.job", "TPU_WORKER_ID": "1"}
SLICES = {
    **GKE,
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "a-0.job:8080",
}
SKY = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        # Ports: 61440 + (4097 + 2) mod 4096, and 61440 + 12288 / 4096.
        (SLURM, Place("Slurm", "node007:61443", 2, 1)),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            Place("Slurm", "node007:61443", 4, 1, local=1),
        ),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "CUDA_VISIBLE_DEVICES": "1"},
            Place("Slurm", "node007:61443", 4, 1),
        ),
        (MPI, Place("Open MPI", "10.96.0.1:61443", 4, 3, local=1)),
        ({**SLURM, **MPI}, Place("Open MPI", "10.96.0.1:61443", 4, 3, local=1)),
        (
            {**MPI, "OMPI_MCA_orte_hnp_uri": "12288.0;tcp6://[fe80::b9b,2620::3]:43370"},
            Place("Open MPI", "[fe80::b9b]:61443", 4, 3, local=1),
        ),
        (GKE, Place("Cloud TPU (GKE)", "t-0.job:8476", 2, 1)),
        (SLICES, Place("Cloud TPU (GKE)", "a-0.job:8476", 6, 5)),
        (SKY, Place("SkyPilot", "10.0.0.4:8476", 2, 1)),
    ],
)
def test_each_cluster_says_where_a_process_stands(environ, place):
    assert locate(environ=environ) == place


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {**MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_a_process_that_has_no_others_is_alone(environ):
    assert locate(environ=environ) is None


def test_flags_stand_above_the_cluster():
    assert locate("here:1", 3, 2, environ={}) == Place("the flags", "here:1", 3, 2)
    assert locate("here:1", environ=SLURM) == Place("Slurm", "here:1", 2, 1)
    assert locate(count=1, environ=SLURM) is None
    # All three at once: what the cluster says is not even read.
    assert locate("here:1", 2, 0, environ={"SLURM_JOB_ID": "x"}).cluster == "the flags"
    pod = {**POD, "JOB_COMPLETION_INDEX": "3"}
    assert locate("set-0-0.set:1", 4, environ=pod) == Place("Kubernetes", "set-0-0.set:1", 4, 3)


def test_a_cloud_tpu_machine_is_asked():
    new = {"worker-network-endpoints": "a,b", "agent-worker-number": "1", "tpu-env": ""}
    assert locate(environ={}, metadata=new.get) == Place("Cloud TPU", "a:8476", 2, 1)
    old = {
        "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
        "agent-worker-number": "1",
        "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9'\n",
    }
    assert locate(environ={}, metadata=old.get) == Place("Cloud TPU", "10.0.0.9:8476", 4, 3)
    assert locate(environ={}, metadata={}.get) is None
    assert locate(environ={}, metadata={"worker-network-endpoints": "a"}.get) is None


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (("h:1", None, None), {}, "the flags did not say --processes and --process .* add them"),
        ((None, 2, None), {}, "did not say --coordinator and --process"),
        ((None, 2, None), GKE | {"TPU_WORKER_ID": "2"}, "process 2 of 2: count them from 0"),
        (("host", 2, 0), {}, "--coordinator=host: write host:port"),
        (("h:1", 2, 2), {}, "process 2 of 2"),
        ((None, 0, None), {}, "--processes=0: there is at least one"),
        ((None, 1, 1), {}, "--process=1 with --processes=1"),
        (
            (None,) * 3,
            {**MPI, "OMPI_MCA_orte_hnp_uri": ""},
            "Open MPI did not say --coordinator .* add it, or give --processes=1",
        ),
        ((None,) * 3, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, "start it with srun"),
        ((None,) * 3, {**SLURM, "SLURM_PROCID": "one"}, "makes no sense .*'one'"),
        ((None,) * 3, {"SKYPILOT_NUM_NODES": "2"}, "did not set SKYPILOT_NODE_RANK; give --coord"),
        ((None,) * 3, {**SLURM, "SLURM_STEP_NODELIST": "[]"}, "no host in the node list"),
        ((None,) * 3, {**SLICES, "MEGASCALE_COORDINATOR_ADDRESS": ""}, "not say --coordinator"),
        ((None,) * 3, POD, "Kubernetes did not say --coordinator and --processes .* install"),
    ],
)
def test_what_is_not_enough_is_told_in_one_line(monkeypatch, flags, environ, message):
    monkeypatch.setattr(clusters, "_has_kubernetes", lambda: False)
    with pytest.raises(UserError, match=message) as error:
        locate(*flags, environ=environ)
    assert "\n" not in str(error.value)


def test_kubernetes_itself_is_asked_where_its_package_is_installed(monkeypatch):
    monkeypatch.setattr(clusters, "_has_kubernetes", lambda: True)
    assert locate(environ=POD) == Place("Kubernetes", None, None, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("node[001-004,7],x", "node001"),
        ("node[3,7-9]", "node3"),
        ("rack[2-3]n[07,09].cluster,x1", "rack2n07.cluster"),
    ],
)
def test_the_first_of_a_node_list(nodes, first):
    assert first_node(nodes) == first
