"""Two sides measured in turn, so that what disturbs a machine disturbs both."""

from collections.abc import Callable, Mapping
import dataclasses
import statistics
import time

Cost = Callable[[], float]

_TURN = 1.0  # seconds


@dataclasses.dataclass(frozen=True)
class Context:
    """How the rows are measured.

    Attributes:
      size: of the models, a name in `registry.SIZES`.
      repetitions: turns of each side.
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
    """Measures A B A B ..., each turn of a side by what it costs when it goes on and on.

    A virtual machine gives memory that lies free for a second back to its host, and asks for it
    anew: the first step after another's turn can cost twice the steps that follow.
    """
    pairs = [(_turn(ours), _turn(theirs)) for _ in range(repetitions)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _turn(cost: Cost) -> float:
    """The median of calls for a second, one at least, after one that is not counted.

    That one compiles, fills caches and takes the memory that it needs.
    """
    cost()
    costs, begun = [], time.perf_counter()
    while not costs or time.perf_counter() - begun < _TURN:
        costs.append(cost())
    return statistics.median(costs)


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
