"""One of two processes that save and restore together, with a checkpoint damaged in between."""

import pathlib
import sys

import jax
import numpy as np

from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.training.checkpoints import Checkpoints
from tests.training import damages

SPECS = {"split": jax.P("fsdp"), "whole": jax.P(), "in_part": jax.P(None, "expert")}


def values(step):
    """The same global arrays in every process."""
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=(64, 32)).astype("float32") for name in SPECS}


def main(index, port, directory):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2))
    places = {name: jax.sharding.NamedSharding(mesh, spec) for name, spec in SPECS.items()}

    def state(step):
        return {
            name: jax.make_array_from_callback(x.shape, places[name], lambda i, x=x: x[i])
            for name, x in values(step).items()
        }

    wanted = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name])
        for name, x in values(1).items()
    }
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    barrier("saved")
    if is_primary():
        damages.flip(damages.arrays(pathlib.Path(directory) / "2"), 8 * 1000)
    barrier("damaged")
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore_latest(wanted)
        for name, array in restored.state.items():
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, values(restored.step)[name][shard.index])
        print(f"restored {restored.step}, saved again {checkpoints.save(2, state(2))}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
