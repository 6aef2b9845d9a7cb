"""A work directory back into a model that answers."""

from collections.abc import Callable
import dataclasses
import json
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.metrics import Thresholds
from moemoe_jax.experiment import ExperimentConfig, from_config_dict, read_settings
from moemoe_jax.files import read_json
from moemoe_jax.inference.calibration import Calibrator
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.models.build import abstract_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.processes import connect
from moemoe_jax.parallel.sharding import param_shardings
from moemoe_jax.training.checkpoints import Checkpoints
from moemoe_jax.training.trainable import split_trainable
from moemoe_jax.workdir import WorkDir, fingerprint, write_atomically


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to answer.

    Attributes:
      config: the run's settings.
      tokenizer: of the work directory.
      graph: of the model.
      params: the states that, with the graph, make the model: trained (their moving average where
        one was kept) and frozen.
      mesh: where they are.
      step: of the checkpoint.
    """

    config: ExperimentConfig
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    params: tuple[nnx.State, nnx.State]
    mesh: Mesh
    step: int

    @property
    def model(self) -> nnx.Module:
        """The model as one module."""
        return nnx.merge(self.graph, *self.params)


def load(workdir: WorkDir, checkpoint: str = "best", mesh: Mesh | None = None) -> Loaded:
    """Loads the model of a work directory.

    Args:
      workdir: where it was trained.
      checkpoint: "best" by the run's metric, "last", or a step.
      mesh: where to put it; by default one as the work directory's settings say, which a run with
        other devices cannot make.

    Raises:
      UserError: when there is no such checkpoint, or it is damaged or of another model, or the
        settings are of another version of the code.
    """
    settings = read_settings(workdir.config)
    tokenizer = Tokenizer.load(workdir.tokenizer)
    config = from_config_dict(settings, tokenizer.vocab_size)
    if mesh is None:
        mesh = make_mesh(config.mesh)
        connect(mesh)
    graph, trained, frozen = split_trainable(abstract_model(config.model), config.train.trainable)
    name = "ema" if config.optimizer.ema_decay else "params"
    target = {name: place(trained, mesh), "frozen": place(frozen, mesh)}
    with Checkpoints(
        workdir.checkpoints,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
        config=fingerprint(workdir.config.read_text()),
        read_only=True,
    ) as checkpoints:
        if checkpoint == "best":
            restored = checkpoints.restore_best(target, partial=True)
        elif checkpoint == "last":
            restored = checkpoints.restore_latest(target, partial=True)
        elif checkpoint.isdigit():
            restored = checkpoints.restore(int(checkpoint), target, partial=True)
        else:
            raise UserError(f"--checkpoint is {checkpoint!r}; use best, last or a step")
    if restored is None:
        raise UserError(f"{workdir.checkpoints} holds no checkpoint yet; train first")
    params = (restored.state[name], restored.state["frozen"])
    return Loaded(config, tokenizer, graph, params, mesh, restored.step)


def on_own_devices(loaded: Loaded) -> Loaded:
    """The model on the devices of each process, so that it answers without the others.

    All processes call this, or the only one there is; then nothing changes.

    Raises:
      UserError: the run's mesh cannot be made of the devices of one process.
    """
    if jax.process_count() == 1:
        return loaded
    mesh = make_mesh(loaded.config.mesh, jax.local_devices())

    def move(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        return jax.device_put(multihost_utils.process_allgather(leaf, tiled=True), sharding)

    params = [jax.tree.map(move, p, param_shardings(p, mesh)) for p in loaded.params]
    return dataclasses.replace(loaded, params=tuple(params), mesh=mesh)


def place(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Adds to the shapes of a state where each belongs on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        param_shardings(state, mesh),
    )


class Calibration(NamedTuple):
    """What was fitted on the validation answers of a checkpoint.

    Attributes:
      calibrator: of the confidences.
      thresholds: from which answers are published.
      settings: that these depend on.
    """

    calibrator: Calibrator
    thresholds: Thresholds
    settings: dict[str, Any]


def save_calibration(workdir: WorkDir, step: int, fitted: Calibration) -> None:
    """Keeps what was fitted on the validation answers of the checkpoint at `step`."""
    document = {"step": step, **fitted._asdict(), "calibrator": fitted.calibrator.to_json()}
    write_atomically(workdir.calibration, json.dumps(document, indent=1) + "\n")


def load_calibration(workdir: WorkDir, step: int) -> Calibration | None:
    """What `save_calibration` kept, or None where there is none for this checkpoint.

    Raises:
      UserError: the file is damaged, or does not tell all of this.
    """
    if not workdir.calibration.is_file():
        return None
    document = read_json(workdir.path, workdir.calibration.name)
    try:
        if document["step"] != step:
            return None
        calibrator = Calibrator.from_json(document["calibrator"])
        settings = {name: dict(group) for name, group in document["settings"].items()}
        settings["answer"]  # is looked at by `calibrator_for`
        return Calibration(calibrator, document["thresholds"], settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{workdir.calibration} is damaged ({why}); delete it and evaluate again"
        ) from None


def calibrator_for(
    loaded: Loaded, workdir: WorkDir, answer: AnswerConfig, say: Callable[[str], None]
) -> Calibrator | None:
    """The run's calibrator, or None where none was fitted, or `answer` scores in another way.

    Args:
      loaded: the model, with the run's settings.
      workdir: where it is from.
      answer: how questions will be answered.
      say: prints a line, where there is a calibrator that does not fit.
    """
    found = load_calibration(workdir, loaded.step)
    if found is None:
        return None
    wanted, fitted = answer.scored_by(), found.settings["answer"]
    if any(fitted.get(name) != value for name, value in wanted.items()):
        told = " ".join(f"{name}={value}" for name, value in fitted.items())
        say(
            f"note: no calibrated scores: those were fitted on answers with {told}; answer with "
            "these settings to have them, or fit some by launch.evaluate with yours"
        )
        return None
    if not found.calibrator.fitted:
        say(
            "note: no calibrated scores: on the validation records the model gave no answer to fit "
            "them on; train longer, or with more of them (data.val_fraction)"
        )
        return None
    return found.calibrator
