"""What each device would hold of a training: worked out, with nothing allocated, read or written.

The devices need not be here: a laptop plans for a pod.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from flax import nnx
import jax
import ml_collections

from moemoe_jax.aot.chips import CHIPS, H100, Chip
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.parallel.mesh import AXES, MeshConfig, abstract_mesh
from moemoe_jax.parallel.sharding import bytes_on_device, describe, indivisible, size_text, table
from moemoe_jax.training.setup import Run, plan, with_vocabulary
from moemoe_jax.training.trainable import Trainable, parameter_table
from moemoe_jax.workdir import WorkDir

# The data would tell; only the schedule asks, and nothing is said of it. More than any warm-up.
_STEPS_PER_EPOCH = 1e6


def dry_run(
    mapping: ml_collections.ConfigDict, workdir: WorkDir, say: Callable[[str], None] = print
) -> None:
    """Says where every parameter would lie, and behind that what it comes to on a device.

    The data are left alone. The vocabulary is that of the tokenizer that the run has or names;
    before there is one, `data.tokenizer_vocab_size` stands in. So it does where the model to start
    from is yet to be trained.

    Args:
      mapping: the settings; see `experiment`.
      workdir: of the run, which need not exist.
      say: prints a line.

    Raises:
      UserError: for settings that do not fit each other or the mesh.
    """
    start = mapping.init.work_dir
    if start and not workdir.config.exists() and not WorkDir(Path(start)).config.exists():
        say(f"init: {start} is no work directory yet; planned without it")
        mapping = mapping.copy_and_resolve_references()
        mapping.init.work_dir = ""
    mapping = with_vocabulary(mapping, workdir)
    config = from_config_dict(mapping, _vocabulary(mapping, workdir, say))
    run = plan(config, _STEPS_PER_EPOCH, abstract_mesh(config.mesh))
    state = nnx.state(run.model)
    whole = indivisible(state, run.mesh)
    for line in (describe(state, run.mesh), *(f"note: {line}" for line in whole)):
        say(line)
    say("")
    for line in _summary(run, config.mesh, config.train.trainable, len(whole)):
        say(line)


def _summary(run: Run, wanted: MeshConfig, trainable: Trainable, notes: int) -> Iterator[str]:
    """What most plans are asked for, in so few lines that they stay on a screen."""
    sizes = " ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    yield f"mesh: {sizes}, {run.mesh.size} device{'s' * (run.mesh.size > 1)}"
    if -1 in wanted.sizes and (here := len(jax.devices())) != run.mesh.size:
        rest = AXES[wanted.sizes.index(-1)]
        yield (
            f"note: mesh.{rest} is what is left of the devices, and those here ({here}) do not "
            f"come out even: counted as 1; --config.mesh.{rest}=N plans for more"
        )
    if notes:
        yield f"notes: {notes} above, on what stays whole on every device"
    yield from ("", parameter_table(run.model, trainable), "")
    held = run.held()
    held["gradients, in a step"] = held["trained parameters"]
    parts = {name: bytes_on_device(tree) for name, tree in held.items()}
    total = sum(parts.values())
    parts["total, without activations"] = total
    yield table([("on a device", "size"), *((name, size_text(n)) for name, n in parts.items())])
    chips = (*CHIPS.values(), H100)
    yield from ("", f"of a chip's memory: {', '.join(_share(total, chip) for chip in chips)}")
    yield "what activations take besides, python -m launch.compile_check tells"


def _share(size: int, chip: Chip) -> str:
    fits = "" if size < chip.hbm_bytes else " (does not fit)"
    share = size / chip.hbm_bytes
    return f"{chip.name} {'<1%' if share < 0.01 else f'{share:.0%}'}{fits}"


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
