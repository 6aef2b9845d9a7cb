"""What happens to a checkpoint that is not what was saved: it is named, and another one is used.

With several processes all of them call these functions together and come to the same result.
"""

from collections.abc import Callable, Iterable
import itertools
from typing import Any, NamedTuple

from etils import epath

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.processes import barrier, is_primary
from moemoe_jax.training import manifest, together
from moemoe_jax.training.diagnosis import damaged_leaves
from moemoe_jax.training.manifest import Manifest

ARRAYS = "state"  # the folder of a checkpoint that Orbax keeps the arrays in
LENGTH = 400  # characters of a cause that an error has room for


class DamagedError(UserError):
    """A checkpoint is not what was saved: `cause` says what of it, in one line."""

    def __init__(self, place: epath.Path, cause: str):
        self.place, self.cause = place, " ".join(cause.split())[:LENGTH]
        super().__init__(
            f"checkpoint {place} is damaged ({self.cause}): use another step, or put back a copy"
        )


def read_manifest(place: epath.Path) -> Manifest:
    """Reads the manifest of the checkpoint in the folder `place`, whose name is its step.

    Raises:
      DamagedError: when it is missing, was changed or belongs to another checkpoint.
    """
    try:
        return manifest.read(place, int(place.name))
    except (ValueError, OSError) as error:
        raise DamagedError(place, str(error)) from error


def verify(place: epath.Path) -> Manifest:
    """Compares every file of a checkpoint with its manifest, and returns that.

    Raises:
      DamagedError: names the files and the leaves that are damaged.
    """
    found, problem = None, ""
    try:
        found = read_manifest(place)
    except DamagedError as error:
        problem = error.cause
    problem = together.first_problem(problem)
    if problem:
        raise DamagedError(place, problem)
    try:
        problem = manifest.find_damage(place, found)
    except OSError as error:
        problem = str(error)
    problem = together.first_problem(problem)
    if problem:
        leaves = damaged_leaves(place / ARRAYS, found) if is_primary() else []
        raise DamagedError(place, problem + (f"; leaves: {shown(leaves)}" if leaves else ""))
    return found


class Whole(NamedTuple):
    """The first checkpoint that is whole: its step, what reading it gave, the damaged before it."""

    step: int
    result: Any
    damaged: list[DamagedError]


def first_whole(steps: Iterable[int], read: Callable[[int], Any]) -> Whole | None:
    """Reads the first of the steps that is not damaged; None where there are no steps.

    Raises:
      UserError: when all are damaged.
    """
    damaged: list[DamagedError] = []
    for step in steps:
        try:
            return Whole(step, read(step), damaged)
        except DamagedError as error:
            damaged.append(error)
    if damaged:
        causes = "; ".join(f"{error.place.name}: {error.cause}" for error in damaged)
        raise UserError(
            f"no checkpoint in {damaged[0].place.parent} is whole ({causes}): put back a copy of "
            "one, or remove them to start anew"
        )
    return None


def put_aside(place: epath.Path) -> epath.Path:
    """Renames the folder of a damaged checkpoint to `12.damaged`, so that 12 can be saved again.

    Returns:
      Its new place.
    """
    names = (f"{place.name}.damaged{number or ''}" for number in itertools.count())
    new = next(path for path in map(place.parent.joinpath, names) if not path.exists())
    barrier(f"before {new}")  # all have looked for a free name
    if is_primary():
        place.rename(new)
    barrier(f"after {new}")
    return new


def shown(names: list[str]) -> str:
    """The first few of the names."""
    more = f" and {len(names) - manifest.SHOWN} more" if len(names) > manifest.SHOWN else ""
    return ", ".join(names[: manifest.SHOWN]) + more
