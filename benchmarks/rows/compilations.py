"""How many programs are compiled once a job is warm, against those that it warmed up with."""

from collections.abc import Iterator
import contextlib
import itertools
import json
from pathlib import Path
import tempfile

from flax import nnx
import jax
import numpy as np

from benchmarks.measure import Context, Samples
from benchmarks.ours import experiment
from benchmarks.sizes import settings
from launch import process
from moemoe_jax.data.examples import corpus
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.inference.stream import Stream, answer_windows, stream_data
from moemoe_jax.models.build import create_model
from moemoe_jax.parallel.mesh import make_mesh
from moemoe_jax.training.loop import train
from moemoe_jax.training.stopping import Stop

_EVENT = "/jax/core/compile/backend_compile_duration"  # also where a kept program is loaded
_ATTRIBUTES = ("color", "material", "sleeve", "neck", "pattern", "fit")
_WORDS = ("red", "blue", "green", "cotton", "linen", "long", "short", "round", "plain", "slim")
_RECORDS = 150


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """A list that grows by one with every program that is compiled."""
    found: list[str] = []

    def note(event: str, seconds: float, **_) -> None:
        if event == _EVENT:
            found.append(f"{seconds:.2f} s")

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


class _Counting(Stop):
    """Notes behind every step how many programs there are so far."""

    def __init__(self, compiled: list[str]):
        super().__init__()
        self.counts: list[int] = []
        self._compiled = compiled

    def keep(self) -> None:
        super().keep()
        self.counts.append(len(self._compiled))


def training(context: Context) -> Samples:
    """Three epochs, with evaluations and checkpoints: what the second half compiles is too much."""
    process.trim_after_compilations()  # as launch.train does
    mapping = _settings(context.size)
    data = mapping.data
    data.text_buckets, data.val_fraction = (data.text_length // 2,), 0.25
    mapping.train.epochs, mapping.train.samples = 3, 0
    with tempfile.TemporaryDirectory() as folder, _compilations() as compiled:
        data.source = str(_records(Path(folder)))
        stop = _Counting(compiled)
        train(mapping, str(Path(folder, "run")), say=lambda _: None, stop=stop)
        warm = stop.counts[len(stop.counts) // 2]
        return Samples("programs", [len(compiled) - warm], [warm])


def answering(context: Context) -> Samples:
    """The stream of `launch.predict` over records of short and long texts, twice and more."""
    mapping = _settings(context.size)
    mapping.answer.window = 40  # batches that are full, and others
    config = experiment(mapping)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(str(_records(Path(folder))))
        texts = corpus(source, config.data)
        tokenizer = Tokenizer.train(texts, config.data.tokenizer_vocab_size)
        reader = ProductReader(
            source,
            tokenizer,
            stream_data(config.data, config.answer, len(_ATTRIBUTES)),
            rejects=Rejects(max_fraction=0.0),
            notes=Notes(),
            labelled_only=False,
            ask=_ATTRIBUTES,
        )
        stream = Stream(reader, config.model, config.answer)
        mesh = make_mesh(config.mesh)
        graph, params = nnx.split(create_model(config.model, 0, mesh))
        predictor = Predictor(graph, config, tokenizer, mesh)
        start = predictor.starter((params,))
        counts = []
        with _compilations() as compiled:
            for _ in range(1 + context.repetitions):
                works = stream.works(range(stream.windows))
                for _ in answer_windows(works, start, predictor.collect):
                    pass
                counts.append(len(compiled))
    again = [after - before for before, after in itertools.pairwise(counts)]
    note = f"{len(stream.shapes)} shapes of batches, of at most {stream.most_shapes}"
    return Samples("programs", again, counts[:1] * len(again), note)


def _settings(size: str):
    """Texts are cut at several lengths only where nobody reads their padding."""
    mapping = settings(size, len(_ATTRIBUTES))
    mapping.model.fusion.padding = "zero"
    mapping.data.sources.text.fields = ("title",)
    return mapping


def _records(folder: Path) -> Path:
    """JSON Lines of products without an image, whose titles have 1 to 64 words."""
    rng = np.random.default_rng(0)
    file = folder / "records.jsonl"
    with file.open("w") as out:
        for number in range(_RECORDS):
            words = rng.choice(_WORDS, rng.choice([rng.integers(1, 9), rng.integers(33, 65)]))
            attributes = {name: str(rng.choice(_WORDS)) for name in _ATTRIBUTES}
            record = {"id": str(number), "sources": {"title": " ".join(words)}}
            out.write(json.dumps(record | {"attributes": attributes}) + "\n")
    return file
