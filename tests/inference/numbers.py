"""Records whose texts are numbers, a tokenizer of numbers, and a model that answers with some."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import numpy as np

from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.inference.stream import Stream, stream_data
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from tests.models.tiny import MIXTURE, random_model

MODEL = dataclasses.replace(
    MIXTURE,
    text=dataclasses.replace(MIXTURE.text, vocab_size=12, tie_word_embeddings=False),
    text_length=32,
    fusion=dataclasses.replace(MIXTURE.fusion, padding="zero"),
)
ANSWER = AnswerConfig(products_per_batch=4, window=10, lengths=3)
DATA = DataConfig(
    text_length=32,
    answer_length=4,
    no_answer_text="99",  # which no model has
    sources=(
        SourceConfig("title", "text", ("title",)),
        SourceConfig("description", "text", ("description",)),
    ),
)
SETTINGS = ExperimentConfig(model=MODEL, data=DATA, answer=ANSWER)
ASK = ("1 2", "3")


class Numbers:
    """A tokenizer of texts that are token ids."""

    def encode(self, text, length):
        ids = [*map(int, text.split()), 1]
        return np.array(ids[:length], np.int32), len(ids) > length

    def decode(self, ids):
        return " ".join(map(str, ids))


def texts(index, seed=0):
    rng = np.random.default_rng((seed, index))
    longest = rng.choice([5, 12, 28])
    return {
        name: " ".join(map(str, rng.integers(2, 12, rng.integers(1, longest))))
        for name in ("title", "description")
    }


class Records:
    """A source of them."""

    name, splits = "numbers", ()

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return Record(f"r{index}", texts(index))


def write(path, count, bad=()):
    """The same records as JSON Lines; the `bad` ones have nothing to read."""
    with path.open("w") as out:
        for index in range(count):
            sources = {} if index in bad else texts(index)
            out.write(json.dumps({"id": f"r{index}", "sources": sources}) + "\n")


def stream(source, answer=ANSWER, threads=2, trained=(), model=MODEL):
    data = stream_data(dataclasses.replace(DATA, threads=threads), answer, len(ASK))
    counters = {"rejects": Rejects(), "notes": Notes()}
    reader = ProductReader(source, Numbers(), data, labelled_only=False, ask=ASK, **counters)
    return Stream(reader, model, answer, trained=trained)


def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@functools.cache
def weights():
    return nnx.split(random_model(MODEL, seed=4))


def predictor():
    """A Predictor with `begin` (sends a batch) and `programs` (how many were compiled)."""
    graph, params = weights()
    halved = lambda confidence, attributes: confidence / 2  # noqa: E731
    made = Predictor(graph, SETTINGS, Numbers(), mesh(), name="tiny", calibration=halved)
    made.begin = made.starter((params,))
    made.programs = lambda: made._run._cache_size() + made._encode._cache_size()
    return made
