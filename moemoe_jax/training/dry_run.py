"""What each device would hold of a training: worked out, with nothing allocated, read or written.

For a mesh whose sizes are all given, the devices need not be here: a laptop plans for a pod.
"""

from collections.abc import Callable

from flax import nnx
import ml_collections

from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.mesh import abstract_mesh
from moemoe_jax.parallel.sharding import bytes_on_device, describe, indivisible, size_text, table
from moemoe_jax.training.setup import plan, with_vocabulary
from moemoe_jax.workdir import WorkDir

# The data would tell; only the schedule asks, and nothing is said of it. More than any warm-up.
_STEPS_PER_EPOCH = 1e6


def dry_run(
    mapping: ml_collections.ConfigDict, workdir: WorkDir, say: Callable[[str], None] = print
) -> None:
    """Says where every parameter would lie, and how many bytes a device would hold of what.

    The data are left alone. The vocabulary is that of the tokenizer that the run has or names;
    before there is one, `data.tokenizer_vocab_size` stands in.

    Args:
      mapping: the settings; see `experiment`.
      workdir: of the run, which need not exist.
      say: prints a line.

    Raises:
      UserError: for settings that do not fit each other or the mesh.
    """
    mapping = with_vocabulary(mapping, workdir)
    config = from_config_dict(mapping, _vocabulary(mapping, workdir, say))
    mesh = abstract_mesh(config.mesh)
    run = plan(config, _STEPS_PER_EPOCH, mesh)
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    say(f"mesh: {sizes}, {mesh.size} devices")
    say(describe(nnx.state(run.model), mesh))
    for line in indivisible(nnx.state(run.model), mesh):
        say(f"note: {line}")
    held = run.held()
    held["gradients, in a step"] = held["trained parameters"]
    sizes = {name: bytes_on_device(tree) for name, tree in held.items()}
    sizes["total, without activations"] = sum(sizes.values())
    rows = [("in all", "on a device"), *((name, size_text(n)) for name, n in sizes.items())]
    say(table(rows))


def _vocabulary(
    mapping: ml_collections.ConfigDict, workdir: WorkDir, say: Callable[[str], None]
) -> int:
    if workdir.tokenizer.exists():
        return Tokenizer.load(workdir.tokenizer).vocab_size
    if mapping.init.work_dir:
        return Tokenizer.load(WorkDir.open(mapping.init.work_dir).tokenizer).vocab_size
    if mapping.data.tokenizer:
        return Tokenizer.load(mapping.data.tokenizer).vocab_size
    pieces = mapping.data.tokenizer_vocab_size
    say(f"tokenizer: none yet; counted with data.tokenizer_vocab_size, {pieces} pieces")
    return pieces
