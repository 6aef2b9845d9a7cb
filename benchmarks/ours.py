"""Our side of the rows: the programs that training and answering run, on one batch."""

import functools

from flax import nnx
import jax
import ml_collections
import numpy as np

from benchmarks.batches import random_batch
from moemoe_jax.aot.programs import vocabulary
from moemoe_jax.experiment import ExperimentConfig, from_config_dict
from moemoe_jax.inference.decoding import END
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.models.build import create_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.parallel.sharding import place_batch
from moemoe_jax.training.encode_once import EncodeOnce
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
      keep: whether the encodings are kept from the first step on. Taking them out and putting them
        on the device is then a part of each step; otherwise the batch is there already.
    """

    def __init__(self, config: ExperimentConfig, batch: dict | None = None, keep: bool = False):
        run = plan(config, _STEPS_PER_EPOCH)
        self._step = jitted_step(config, run)
        self._state, self._frozen = first_state(config, run, lambda _: None)
        batch = random_batch(config) if batch is None else batch
        if keep:
            encoded = EncodeOnce(config, run, _Repeated(config, batch), self._frozen)
            self._ready = functools.partial(encoded, 0, batch)
        else:
            placed = place_batch(batch, run.mesh)
            self._ready = lambda: placed

    def __call__(self) -> None:
        """One step, to its end."""
        self._state, metrics = self._step(self._state, self._frozen, self._ready())
        jax.block_until_ready((self._state, metrics))


class _Repeated:
    """What `EncodeOnce` asks of the pipeline, of one batch that comes again and again."""

    def __init__(self, config: ExperimentConfig, batch: dict):
        self.products = config.data.products_per_batch
        self.rows = self.questions = len(batch["question_ids"])

    def records(self, step: int) -> np.ndarray:
        return np.arange(self.products)


class Answering:
    """Answers to one batch, again and again; none ends before its last token.

    As in a stream whose batches ask the same questions: those are encoded for the first call.
    """

    def __init__(self, config: ExperimentConfig):
        mesh = make_mesh(config.mesh)
        model = create_model(config.model, 0, mesh)
        table = model.decoder_embedding.table
        table[...] = table[...].at[END].set(0.0)  # scores of 0 are never the highest
        graph, params = nnx.split(model)
        nobody = None  # turns answers into text
        self._start = Predictor(graph, config, nobody, mesh).starter((params,))
        self._batch = random_batch(config)
        del self._batch["answer_ids"]

    def __call__(self) -> None:
        """All answers, to their end, and the batch's way to the devices."""
        jax.block_until_ready(self._start(self._batch))
