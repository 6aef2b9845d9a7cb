"""Steps that train a part of the model against the full step, both ours, in seconds."""

from collections.abc import Callable

from benchmarks.measure import Context, Samples, in_turn, timed
from benchmarks.ours import Training, experiment
from benchmarks.sizes import settings

_QUESTIONS = 6


def against_full(context: Context, variant: str) -> Samples:
    """One of `VARIANTS` and the full step of the same model, on the same batch."""
    ours, full = VARIANTS[variant](context.size), _step(context.size, "all")
    return Samples("s", *in_turn(timed(ours), timed(full), context.repetitions))


def _step(size: str, trainable: str, keep: bool = False) -> Training:
    """A step; with `keep`, on encodings that are kept, so the encoders do not drop out."""
    mapping = settings(size, _QUESTIONS, mixture=True)
    mapping.train.trainable, mapping.train.frozen_dropout = trainable, not keep
    return Training(experiment(mapping), keep=keep)


# By name, what makes a step of a size.
VARIANTS: dict[str, Callable[[str], Callable[[], object]]] = {
    "experts": lambda size: _step(size, "experts"),
    "kept": lambda size: _step(size, "experts", keep=True),
}
