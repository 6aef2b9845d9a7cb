"""Which remat policy and batch size give the best predicted throughput that fits.

Predictions are the bounds of the compiled program; each costs a compilation, so they are few.
"""

from collections.abc import Callable
from typing import Any

POLICIES = ("none", "dots", "full")  # growing work, shrinking memory

Measure = Callable[[str, int], dict[str, Any]]
"""(remat, products a chip) -> {"fits", and if it does "throughput", ...}."""


def search(measure: Measure, start: int, budget: int) -> tuple[list[dict[str, Any]], Any]:
    """Searches from coarse to fine.

    Each policy doubles the batch until memory runs out, and the next, which keeps less, goes on
    with the batch that did not fit. If nothing fitted, the last policy halves it. What is left of
    the budget halves the gap between the best row and the batch above it that did not fit.

    Args:
      measure: compiles one candidate.
      start: products a chip to begin with.
      budget: the most candidates.

    Returns:
      The rows in the order in which they were tried, with "remat" and "batch" added, and the best
      of them (None if none fits).
    """
    rows: list[dict[str, Any]] = []

    def attempt(remat: str, batch: int) -> bool:
        rows.append(measure(remat, batch) | {"remat": remat, "batch": batch})
        return rows[-1]["fits"]

    batch = start
    for number, remat in enumerate(POLICIES):
        later = len(POLICIES) - 1 - number  # each of which gets at least one candidate
        while len(rows) < budget - later and attempt(remat, batch):
            batch *= 2
    while not _best(rows) and len(rows) < budget and batch > 1:
        batch //= 2
        attempt(POLICIES[-1], batch)
    best = _best(rows)
    while best is not None and len(rows) < budget:
        same = [r for r in rows if r["remat"] == best["remat"]]
        above = min((r["batch"] for r in same if not r["fits"]), default=0)
        below = max(r["batch"] for r in same if r["fits"])
        if above - below < 2:
            break
        attempt(best["remat"], (above + below) // 2)
        best = _best(rows)
    return rows, best


def _best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    fitting = [row for row in rows if row["fits"]]
    return max(fitting, key=lambda row: row["throughput"], default=None)
