"""Tables of what compiling gave, and what a step can take at best.

Every figure is of one device unless it says otherwise.
"""

import dataclasses
from typing import Any

from moemoe_jax.aot.chips import Chip
from moemoe_jax.parallel.sharding import table

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The least seconds that each resource needs for a step, were it the only one."""

    compute: float
    hbm: float
    ici: float

    @property
    def step(self) -> float:
        """Seconds of a step in which all of them work at the same time."""
        return max(self.compute, self.hbm, self.ici)

    @property
    def name(self) -> str:
        """The resource that bounds it."""
        names = {"compute": self.compute, "HBM": self.hbm, "interconnect": self.ici}
        return max(names, key=names.get)


def bounds(program: dict[str, Any], chip: Chip) -> Bounds:
    """The bounds of a compiled program; collectives are taken one after the other."""
    sent = sum(kind["bytes"] for kind in program["collectives"].values())
    return Bounds(
        program["flops"] / chip.flops,
        program["hbm_bytes"] / chip.hbm_bandwidth,
        sent / chip.ici_bandwidth,
    )


def fits(result: dict[str, Any]) -> bool:
    """Whether all programs of a result fit in memory."""
    return all(program["fits"] for program in result["programs"].values())


def report(result: dict[str, Any], chip: Chip, products: int) -> str:
    """The tables of one topology.

    Args:
      result: what the worker gave, with "topology" and "effort".
      chip: of the topology.
      products: of a training batch, on all devices.
    """
    mesh = " ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    a_chip = products / result["devices"]
    lines = [f"{result['topology']}: {mesh}, {products} products a step ({a_chip:g} a chip)", ""]
    lines += [_memory(result["programs"], chip), _held(result["held"]), ""]
    train = result["programs"].get("train")
    if train and train["fits"]:
        lines += [_flops(train, result), "", _collectives(train, result), ""]
        lines += [_bounds(train, chip, products), *_gathers(train)]
    return "\n".join(lines)


def _memory(programs: dict[str, Any], chip: Chip) -> str:
    rows = [("memory, GiB", "arguments", "temporaries", "other", "peak", f"of {chip.name}", "")]
    for name, program in programs.items():
        if not program["fits"]:
            need, have = program["needs"] / GIB, program["available"] / GIB
            rows.append((name, "", "", "", f"{need:.2f}", f"{need / have:.0%}", refusal(program)))
            continue
        other = program["results"] + program["code"]
        sizes = (program["arguments"], program["temporaries"], other, program["peak"])
        share = f"{program['peak'] / chip.hbm_bytes:.0%}"
        seconds = f"fits (compiled in {program['seconds']:.0f} s)"
        rows.append((name, *(f"{size / GIB:.2f}" for size in sizes), share, seconds))
    return table(rows)


def _held(held: dict[str, int]) -> str:
    """Says what the arguments of a step are, without the batch."""
    shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items() if size)
    return f"kept from step to step, GiB: {shown}"


def refusal(program: dict[str, Any]) -> str:
    """Says by how much a program does not fit."""
    need, have = program["needs"] / GIB, program["available"] / GIB
    return f"does not fit: needs {need:.2f} of {have:.2f} GiB"


def _flops(program: dict[str, Any], result: dict[str, Any]) -> str:
    formula, devices = result["formula"], result["devices"]
    rows = [("matrix products, GFLOP", "program", "formula", "program/formula")]
    found, whole, model = program["flops"], formula["total"] / devices, formula["model"] / devices
    rows += [
        ("with recomputation", *(_number(x / 1e9) for x in (found, whole)), f"{found / whole:.3f}"),
        ("forward and backward", "", _number(model / 1e9), f"{found / model:.3f}"),
    ]
    return table(rows)


def _collectives(program: dict[str, Any], result: dict[str, Any]) -> str:
    rows = [("collectives", "runs a step", "MiB sent", "least MiB", "sent/least")]
    found, least = program["collectives"], result["minimum"]
    sent = {kind: entry["bytes"] for kind, entry in found.items()}
    names = [*found, *(kind for kind, size in least.items() if size and kind not in found)]
    for kind in names:
        runs = f"{found[kind]['count']:g}" if kind in found else "0"
        rows.append((kind, runs, *_against(sent.get(kind, 0.0), least.get(kind, 0.0))))
    rows.append(("all", "", *_against(sum(sent.values()), sum(least.values()))))
    return table(rows)


def _against(sent: float, least: float) -> tuple[str, str, str]:
    ratio = f"{sent / least:.2f}" if least else "-"
    return _number(sent / 2**20), _number(least / 2**20), ratio


def _number(value: float) -> str:
    """One place behind the point, or more where the number is small."""
    return f"{value:.1f}" if value >= 10 or not value else f"{value:.2g}"


def _bounds(program: dict[str, Any], chip: Chip, products: int) -> str:
    least = bounds(program, chip)
    times = (("compute", least.compute), ("HBM", least.hbm), ("interconnect", least.ici))
    shown = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times)
    return (
        f"a step takes at least: {shown}; bound by {least.name}: "
        f"at most {products / least.step:,.0f} products/s"
    )


def _gathers(program: dict[str, Any]) -> list[str]:
    """Lists the gathers over 1 MiB: of what is split, what is made whole, and for what."""
    if not program["gathers"]:
        return []
    rows = [("gathers of 1 MiB and more", "MiB", "runs", "for")]
    merged: dict[tuple[str, float, str], float] = {}
    for gather in program["gathers"]:
        key = gather["shape"], gather["bytes"], gather["source"] or "(not said)"
        merged[key] = merged.get(key, 0.0) + gather["times"]
    for (shape, size, source), times in sorted(merged.items(), key=lambda e: -e[0][1]):
        rows.append((_short(shape), f"{size / 2**20:.1f}", f"{times:g}", source))
    return ["", _left(rows)]


def _short(shape: str) -> str:
    parts = shape.split()
    return parts[0] if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1} more"


def _left(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)


def search_line(row: dict[str, Any]) -> str:
    """What one candidate of a search came to."""
    if not row["fits"]:
        return row["note"]
    peak, step = f"{row['peak'] / GIB:.2f} GiB", f"{row['step'] * 1e3:.2f} ms"
    speed = f"{row['throughput']:,.0f} products/s at most, {row['bound']}-bound"
    return f"fits with {peak}; a step takes at least {step}: {speed}"


def search_table(rows: list[dict[str, Any]], best: dict[str, Any] | None) -> str:
    """What a search tried, in its order; the best is marked."""
    lines = [("remat", "products a chip", "peak GiB", "least ms", "products/s", "")]
    for row in rows:
        name = (row["remat"], f"{row['batch']}")
        if not row["fits"]:
            lines.append((*name, "", "", "", row["note"]))
            continue
        mark = f"{row['bound']}-bound" + (" (best)" if row is best else "")
        peak, step = f"{row['peak'] / GIB:.2f}", f"{row['step'] * 1e3:.2f}"
        lines.append((*name, peak, step, f"{row['throughput']:,.0f}", mark))
    return table(lines)
