"""The few pieces of HTML that the report is made of; all of them escape what they are given."""

from collections.abc import Sequence
import html

_STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 36px 0 10px; font-size: 18px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 80ch; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.card, .panel { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.card { flex: 1 1 118px; padding: 12px 14px; }
.card b { display: block; font-size: 24px; font-weight: 650; }
.card span { color: var(--soft); font-size: 13px; }
.panel { padding: 8px 14px; overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; }
figure { flex: 1 1 340px; margin: 0; } figure svg { width: 100%; height: auto; }
figcaption { font-weight: 600; padding: 6px 4px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; font-size: 13px; text-align: left;
  border-bottom: 2px solid var(--line); }
th, td { padding: 6px 10px; vertical-align: top; overflow-wrap: anywhere; }
td { border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
td.bar { background: linear-gradient(to right, #dbe7ff var(--v), transparent var(--v)); }
tr.mean td { font-weight: 650; background-color: #f5f7fa; }
.stack { display: flex; height: 16px; min-width: 160px; border-radius: 4px; overflow: hidden; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 5px 0 14px; }
.right { color: #0f766e; } .wrong { color: #b91c1c; } .faint { color: var(--soft); }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page without external resources; `body` is HTML already, `title` is text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], last_is_mean: bool = False) -> str:
    """A table of texts; cells after the first are numbers, and shares get a bar behind them."""
    head = "".join(
        f"<th{' class=n' if i else ''}>{html.escape(h)}</th>" for i, h in enumerate(heads)
    )
    lines = []
    for index, row in enumerate(rows):
        mean = ' class="mean"' if last_is_mean and index == len(rows) - 1 else ""
        cells = "".join(
            f'<td class="n bar" style="--v:{cell}">{cell}</td>'
            if cell.endswith("%")
            else f'<td class="n">{html.escape(cell)}</td>'
            for cell in row[1:]
        )
        lines.append(f"<tr{mean}><td>{html.escape(row[0])}</td>{cells}</tr>")
    return f'<div class="panel"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
