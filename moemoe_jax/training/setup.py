"""What a run needs before its first step: data, tokenizer, model, optimizer, state, on the mesh."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
from jax.sharding import AbstractMesh, Mesh
import ml_collections
import optax

from moemoe_jax.data.examples import corpus
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource, open_splits, own_splits
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.data.train_batches import TrainBatches, train_batches
from moemoe_jax.experiment import ExperimentConfig, from_config_dict, read_settings
from moemoe_jax.inference.loading import load, place
from moemoe_jax.models.build import abstract_model, create_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.parallel.sharding import (
    local_rows,
    optimizer_shardings,
    param_shardings,
    replicated,
)
from moemoe_jax.training.encoders import encoders_of
from moemoe_jax.training.initialise import initialise_from
from moemoe_jax.training.mesh_check import check_mesh
from moemoe_jax.training.optimizer import make_optimizer
from moemoe_jax.training.step import TrainState, init_state, make_train_step
from moemoe_jax.training.trainable import split_trainable
from moemoe_jax.workdir import WorkDir

Say = Callable[[str], None]


def with_vocabulary(
    mapping: ml_collections.ConfigDict, workdir: WorkDir
) -> ml_collections.ConfigDict:
    """The settings, with as many rows in the token tables as the run to start from has.

    An imported model has more of them than its tokenizer has pieces.
    """
    start = mapping.init.work_dir
    if not start or mapping.data.vocab_rows is not None:
        return mapping
    saved = workdir if workdir.config.exists() else WorkDir.open(start)
    mapping = mapping.copy_and_resolve_references()
    mapping.data.vocab_rows = read_settings(saved.config).data.vocab_rows
    return mapping


@dataclasses.dataclass(frozen=True)
class Data:
    """The records of a run and what reads them."""

    train: TrainBatches
    val: RecordSource | None
    tokenizer: Tokenizer
    rejects: Rejects


def open_data(mapping: dict[str, Any], workdir: WorkDir, resuming: bool, say: Say) -> Data:
    """Opens the data and the tokenizer; trains the latter where there is none yet.

    Args:
      mapping: the settings.
      workdir: of the run; gets the rejects.
      resuming: whether it has the run's tokenizer already.
      say: prints a line.
    """
    config = from_config_dict(mapping)
    data = config.data
    rejects = Rejects(workdir.rejects, data.max_reject_fraction, jax.process_index())
    splits = ("train", "val") if data.val_fraction else ("train",)
    if not data.val_fraction and "val" in own_splits(data.source):
        say(
            f"note: {data.source} has a val split, which is not used, as data.val_fraction is 0; "
            "any other value uses all of it"
        )
    sources = open_splits(
        data.source,
        splits,
        rejects,
        fractions=data.split_fractions,
        split_seed=data.split_seed,
    )
    if resuming:
        tokenizer = Tokenizer.load(workdir.tokenizer)
    else:
        tokenizer = _tokenizer(config, sources["train"], workdir, say)
    train = train_batches(
        sources["train"],
        tokenizer,
        data,
        config.train.seed,
        rows=local_rows(make_mesh(config.mesh), data.products_per_batch),
        rejects=rejects,
    )
    say(
        f"data: {train.products} products, {train.questions} questions to train on "
        f"from {data.source}; tokenizer of {tokenizer.vocab_size} pieces"
    )
    if rejects.total:
        say(f"data: {rejects.total} rejects, listed in {workdir.rejects}")
    return Data(train, sources.get("val"), tokenizer, rejects)


def _tokenizer(
    config: ExperimentConfig, source: RecordSource, workdir: WorkDir, say: Say
) -> Tokenizer:
    if config.init.work_dir:
        # The embeddings belong to its tokens.
        start = WorkDir.open(config.init.work_dir)
        if config.data.tokenizer:
            say(
                f"tokenizer: that of {start.path}, whose token tables are taken; "
                f"data.tokenizer={config.data.tokenizer} is not read"
            )
        return Tokenizer.load(start.tokenizer)
    if config.data.tokenizer:
        return Tokenizer.load(config.data.tokenizer)
    say("tokenizer: training on the texts of the training split")
    data = config.data
    if is_primary():
        trained = Tokenizer.train(
            corpus(source, data), data.tokenizer_vocab_size, single=[data.no_answer_text]
        )
        trained.save(workdir.tokenizer)
    barrier("the tokenizer is trained")
    return trained if is_primary() else Tokenizer.load(workdir.tokenizer)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run before its first step: everything that the steps share.

    Attributes:
      model: with shapes in place of arrays.
      graph: of the model, split into trained and frozen.
      optimizer, schedule: of the trained parameters.
      total_steps: of the whole run.
      steps_per_epoch: rounded, at least one.
      mesh: where all is.
      abstract: shapes and places of (TrainState, frozen parameters).
    """

    model: nnx.Module
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    steps_per_epoch: int
    mesh: Mesh | AbstractMesh
    abstract: tuple[TrainState, nnx.State]

    def held(self) -> dict[str, Any]:
        """What a device keeps from step to step, as shapes and places, by what it is."""
        state, frozen = self.abstract
        return {
            "trained parameters": state.params,
            "frozen parameters": frozen,
            "moving average": state.ema,
            "optimizer state": state.optimizer,
        }


def plan(
    config: ExperimentConfig, steps_per_epoch: float, mesh: Mesh | AbstractMesh | None = None
) -> Run:
    """Works out shapes, places and the schedule; allocates nothing.

    Args:
      config: the settings.
      steps_per_epoch: what the data come to.
      mesh: where the run is to be; None makes the one of `config.mesh` of the devices here.

    Raises:
      UserError: for settings that the mesh does not fit; see `check_mesh`.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    check_mesh(config, mesh)
    model = abstract_model(config.model)
    graph, trained, frozen = split_trainable(model, config.train.trainable)
    per_epoch = max(1, round(steps_per_epoch))
    total = config.train.steps or round(config.train.epochs * steps_per_epoch)
    total = max(1, total)
    optimizer, schedule = make_optimizer(config.optimizer, trained, total, per_epoch)
    return Run(
        model=model,
        graph=graph,
        optimizer=optimizer,
        schedule=schedule,
        total_steps=total,
        steps_per_epoch=per_epoch,
        mesh=mesh,
        abstract=(
            _abstract_state(trained, optimizer, bool(config.optimizer.ema_decay), mesh),
            place(frozen, mesh),
        ),
    )


def _abstract_state(
    trained: nnx.State,
    optimizer: optax.GradientTransformation,
    ema: bool,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer, ema), trained)
    params = param_shardings(trained, mesh)
    whole = replicated(mesh)
    shardings = TrainState(
        step=whole,
        params=params,
        ema=params if ema else None,
        optimizer=optimizer_shardings(optimizer, trained, params, mesh),
        skipped=whole,
        skipped_in_a_row=whole,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def jitted_step(config: ExperimentConfig, run: Run) -> jax.stages.Wrapped:
    """The compiled `step(state, frozen, batch) -> (state, metrics)` of a run, on its mesh.

    The state is donated: what comes back takes its place in memory.
    """
    step = make_train_step(
        run.graph,
        run.optimizer,
        run.schedule,
        config.loss,
        mesh=run.mesh,
        seed=config.train.seed,
        encoders=encoders_of(config),
        accumulation=config.train.accumulation,
        ema_decay=config.optimizer.ema_decay,
    )
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract[0])
    return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(run.mesh)))


def first_state(
    config: ExperimentConfig, run: Run, say: Say, start: WorkDir | None = None
) -> tuple[TrainState, nnx.State]:
    """Initialises the parameters: from random values, or from a work directory.

    Args:
      config: the settings; `init.work_dir` names the work directory to start from.
      run: what the steps share.
      say: prints a line.
      start: the one to start from in place of `init.work_dir`.
    """
    model = create_model(config.model, config.train.seed, run.mesh)
    if start is None and config.init.work_dir:
        start = WorkDir.open(config.init.work_dir)
    if start is not None:
        loaded = load(start, mesh=run.mesh)
        taken = initialise_from(
            model,
            loaded.model,
            noise=config.init.expert_noise,
            key=jax.random.key(config.train.seed),
        )
        say(
            f"init: step {loaded.step} of {start.path}: {len(taken.copied)} parameters "
            f"copied, {len(taken.upcycled)} upcycled to experts, {len(taken.fresh)} new"
        )
    elif config.init.expert_noise:
        say("init: random values; init.expert_noise is for experts made of a dense model's blocks")
    _, trained, frozen = split_trainable(model, config.train.trainable)
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    frozen = jax.device_put(frozen, places[1])
    begin = jax.jit(
        lambda params: init_state(params, run.optimizer, bool(config.optimizer.ema_decay)),
        out_shardings=places[0],
    )
    return begin(trained), frozen
