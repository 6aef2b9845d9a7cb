r"""Puts the evaluations of several work directories side by side.

    python -m launch.summary runs/dense runs/moe

One line an evaluation: accuracy and Recall@90P (means over the attributes), and on data that say
where the evidence is, the accuracy by that.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from launch import common
from moemoe_jax.errors import UserError

EVIDENCE = ("text", "image", "both", "none")


def main(argv: Sequence[str]) -> None:
    """Prints the table of the work directories in `argv[1:]`."""
    rows = [("work directory", "evaluation", "accuracy", "R@90P", *EVIDENCE)]
    for folder in argv[1:]:
        for path in sorted(Path(folder).glob("eval/*/metrics.json")):
            rows.append(_row(folder, path))
    if len(rows) == 1:
        raise UserError(
            f"no evaluation in {', '.join(argv[1:]) or 'no work directory'}; "
            "run python -m launch.evaluate --workdir=… first"
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(left + right))


def _row(folder: str, path: Path) -> tuple[str, ...]:
    try:
        metrics = json.loads(path.read_text())
        where = metrics["by_evidence"]
        values = [metrics["accuracy"], metrics["recall_at_90p"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); evaluate again") from None
    values += [where.get(name, {}).get("accuracy") for name in EVIDENCE]
    return folder, path.parent.name, *("-" if v is None else f"{v:.4f}" for v in values)


if __name__ == "__main__":
    common.run(main, positional=True)
