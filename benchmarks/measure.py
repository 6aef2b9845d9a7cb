"""Two sides measured in turn, so that what disturbs a machine disturbs both."""

from collections.abc import Callable, Mapping
import dataclasses
import time

Cost = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Context:
    """How the rows are measured.

    Attributes:
      size: of the models, a name in `registry.SIZES`.
      repetitions: measurements of each side.
      threads: that either side computes with.
      fashion: folder of "Fashion Product Images"; "" has one made up.
    """

    size: str
    repetitions: int
    threads: int
    fashion: str = ""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Costs of both sides, the n-th of one measured next to the n-th of the other.

    Attributes:
      unit: of the costs.
      ours, theirs: one a repetition.
      note: what else is worth saying, such as which of several ways was their best.
    """

    unit: str
    ours: list[float]
    theirs: list[float]
    note: str = ""


def timed(function: Callable[[], object], per: float = 1.0) -> Cost:
    """Makes the cost of a call: its seconds, divided by `per` (examples, questions)."""

    def cost() -> float:
        begun = time.perf_counter()
        function()
        return (time.perf_counter() - begun) / per

    return cost


def in_turn(ours: Cost, theirs: Cost, repetitions: int) -> tuple[list[float], list[float]]:
    """Measures A B A B ...; the first pair is not counted: it compiles and fills caches."""
    pairs = [(ours(), theirs()) for _ in range(repetitions + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def best(candidates: Mapping[str, Cost]) -> tuple[str, Cost]:
    """The name and the cost of the cheapest of several ways, each tried twice.

    One that fails is left out, and named with the reason, unless all of them do.

    Raises:
      RuntimeError: when all fail.
    """
    found, failed = {}, []
    for name, cost in candidates.items():
        try:
            cost()  # the first call compiles
            found[name] = cost()
        except Exception as error:  # compilers raise nearly anything
            failed.append(f"{name} failed: {' '.join(str(error).split())[:120]}")
    if not found:
        raise RuntimeError("; ".join(failed))
    name = min(found, key=found.__getitem__)
    return "; ".join([f"best of {len(found)}: {name}", *failed]), candidates[name]
