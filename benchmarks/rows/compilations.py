"""How many programs are compiled once a job is warm, against those that it warmed up with."""

from collections.abc import Iterator
import contextlib
import functools
import itertools
from pathlib import Path
import tempfile

from flax import nnx
import jax

from benchmarks.measure import Context, Samples
from benchmarks.ours import experiment
from benchmarks.sizes import settings
from moemoe_jax.data.examples import corpus
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.pipeline import train_batches
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
_QUESTIONS = 6


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
    """Two epochs, with evaluations and checkpoints: what the second compiles is too much.

    It starts to count behind the second epoch's first step.
    """
    mapping = settings(context.size, _QUESTIONS)
    products = 4 * mapping.data.products_per_batch
    mapping.data.source = f"catalogue:products={products},image_size={mapping.data.image_size}"
    mapping.data.val_fraction, mapping.data.test_fraction = 0.25, 0.25
    mapping.train.epochs, mapping.train.samples = 2, 0
    with tempfile.TemporaryDirectory() as folder, _compilations() as compiled:
        stop = _Counting(compiled)
        train(mapping, str(Path(folder, "run")), say=lambda _: None, stop=stop)
        warm = stop.counts[len(stop.counts) // 2]
        return Samples("programs", [len(compiled) - warm], [warm])


def answering(context: Context) -> Samples:
    """The stream of `launch.predict` over records of different lengths, twice and more.

    Texts are cut at several lengths only where nobody reads their padding, hence `padding=zero`.
    """
    mapping = settings(context.size, _QUESTIONS)
    mapping.model.fusion.padding, mapping.answer.window = "zero", 32
    config = experiment(mapping)
    source = open_source(f"catalogue:products=100,image_size={config.data.image_size}", "train")
    tokenizer = Tokenizer.train(corpus(source, config.data), config.data.tokenizer_vocab_size)
    batches = train_batches(source, tokenizer, config.data, seed=0)
    ask = tuple(batches.attributes)
    batches.close()
    reader = ProductReader(
        source,
        tokenizer,
        stream_data(config.data, config.answer, len(ask)),
        rejects=Rejects(max_fraction=0.0),
        notes=Notes(),
        labelled_only=False,
        ask=ask,
    )
    stream = Stream(reader, config.model, config.answer)
    mesh = make_mesh(config.mesh)
    graph, params = nnx.split(create_model(config.model, 0, mesh))
    predictor = Predictor(graph, config, tokenizer, mesh)
    start = functools.partial(predictor.start, (params,))
    with _compilations() as compiled:
        counts = [0]
        for _ in range(1 + context.repetitions):
            works = stream.works(range(stream.windows))
            for _ in answer_windows(works, start, predictor.collect):
                pass
            counts.append(len(compiled))
    warm = counts[1]
    again = [after - before for before, after in itertools.pairwise(counts[1:])]
    note = f"{len(stream.shapes)} shapes of batches, of at most {stream.most_shapes}"
    return Samples("programs", again, [warm] * len(again), note)
