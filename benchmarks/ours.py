"""Our side of the rows: the programs that training and answering run, on one batch."""

import functools

from flax import nnx
import jax
import ml_collections

from benchmarks.batches import random_batch
from moemoe_jax.aot.programs import vocabulary
from moemoe_jax.experiment import ExperimentConfig, from_config_dict
from moemoe_jax.inference.decoding import END
from moemoe_jax.inference.predictor import answer_batch
from moemoe_jax.models.build import create_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.sharding import place_batch
from moemoe_jax.training.setup import first_state, jitted_step, plan

_STEPS_PER_EPOCH = 1000.0  # only the schedule asks


def experiment(mapping: ml_collections.ConfigDict) -> ExperimentConfig:
    """The settings as dataclasses, with the vocabulary that they name."""
    return from_config_dict(mapping, vocabulary(mapping))


class Training:
    """Training steps on one batch, again and again.

    Args:
      config: the settings; `train.trainable` says what is trained.
      batch: in place of a random one.
    """

    def __init__(self, config: ExperimentConfig, batch: dict | None = None):
        run = plan(config, _STEPS_PER_EPOCH)
        self._step = jitted_step(config, run)
        self._state, self._frozen = first_state(config, run, lambda _: None)
        batch = random_batch(config) if batch is None else batch
        self._batch = place_batch(batch, run.mesh)

    def __call__(self) -> None:
        """One step, to its end."""
        self._state, metrics = self._step(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state, metrics))


class Answering:
    """Answers to one batch, again and again; none ends before its last token."""

    def __init__(self, config: ExperimentConfig):
        mesh = make_mesh(config.mesh)
        model = create_model(config.model, 0, mesh)
        table = model.decoder_embedding.table
        table[...] = table[...].at[END].set(0.0)  # scores of 0 are never the highest
        graph, self._params = nnx.split(model)
        self._run = jax.jit(
            functools.partial(answer_batch, graph, mesh, config.data.answer_length, config.answer)
        )
        batch = random_batch(config)
        del batch["answer_ids"]
        self._batch = place_batch(batch, mesh)

    def __call__(self) -> None:
        """All answers, to their end."""
        jax.block_until_ready(self._run((self._params,), self._batch))
