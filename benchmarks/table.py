"""What was measured, as a table of ratios: text for the eye, Markdown and JSON for files."""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
import platform
import statistics
from typing import Any

from benchmarks.registry import Row

HEADER = ("row", "size", "what", "against", "ours", "theirs", "ratio", "spread", "bar", "")


@dataclasses.dataclass(frozen=True)
class Line:
    """One line: a row at a size, or why there is none.

    Attributes:
      row: of the registry.
      size: of the models.
      samples: as `measure.Samples` has them, as a dict; None where it failed.
      failure: why it failed.
    """

    row: Row
    size: str
    samples: dict[str, Any] | None
    failure: str = ""

    def ratio(self) -> float:
        """Of the medians."""
        ours, theirs = self.samples["ours"], self.samples["theirs"]
        return self.row.bar.ratio(statistics.median(ours), statistics.median(theirs))

    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a pair that was measured one after the other."""
        pairs = zip(self.samples["ours"], self.samples["theirs"], strict=True)
        ratios = [self.row.bar.ratio(*pair) for pair in pairs]
        return min(ratios), max(ratios)

    def cells(self) -> tuple[str, ...]:
        """As `HEADER` has them."""
        row = self.row
        start = (row.name, self.size, row.what, row.against)
        if self.samples is None:
            return *start, "", "", "", "", str(row.bar), "not measured"
        unit = self.samples["unit"]
        costs = (quantity(statistics.median(self.samples[k]), unit) for k in ("ours", "theirs"))
        ratio = self.ratio()
        spread = " to ".join(f"{value:.3g}" for value in self.spread())
        verdict = "met" if row.bar.met(ratio) else "missed"
        return *start, *costs, f"{ratio:.3g}", spread, str(row.bar), verdict

    def document(self) -> dict[str, Any]:
        """For the JSON file."""
        found = {"row": self.row.name, "size": self.size, "bar": str(self.row.bar)}
        if self.samples is None:
            return found | {"failure": self.failure}
        ratio = self.ratio()
        met = self.row.bar.met(ratio)
        return found | self.samples | {"ratio": ratio, "spread": self.spread(), "met": met}


def quantity(value: float, unit: str) -> str:
    """A number with its unit: seconds in ms where they are few, bytes in MiB."""
    unit, _, rest = unit.partition(" ")
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    elif unit == "bytes":
        value, unit = value / 2**20, "MiB"
    number = f"{value:.3g}" if abs(value) < 1000 or value >= 1e6 else f"{value:.0f}"
    return " ".join(filter(None, (number, unit, rest)))


def text(lines: Sequence[Line]) -> str:
    """Aligned columns, and the notes below."""
    cells = [HEADER, *(line.cells() for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([*rows, *notes(lines)])


def markdown(lines: Sequence[Line], machine: dict[str, str]) -> str:
    """A table with what it was measured on above and the notes below."""
    rows = [HEADER, ("---",) * len(HEADER), *(line.cells() for line in lines)]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join([about + ".", "", *table, "", *(f"- {note}" for note in notes(lines))]) + "\n"


def notes(lines: Sequence[Line]) -> list[str]:
    """What lines have to say beside their numbers."""
    said = []
    for line in lines:
        note = line.failure if line.samples is None else line.samples["note"]
        if note:
            said.append(f"{line.row.name}, {line.size}: {' '.join(note.split())}")
    return said


def machine(device: str, threads: int, repetitions: int) -> dict[str, str]:
    """What the numbers depend on; `device` is the accelerator's name, or ""."""
    from importlib import metadata

    found = {"accelerator": device} if device else {}
    found |= {"processor": _processor(), "cores": str(os.cpu_count()), "threads": str(threads)}
    found["repetitions"] = str(repetitions)
    for package in ("jax", "torch", "transformers", "ctranslate2"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(lines: Sequence[Line], about: dict[str, str], out: Path) -> None:
    """Writes `out`, JSON, and beside it the same as Markdown."""
    document = {"machine": about, "lines": [line.document() for line in lines]}
    out.write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(lines, about))
