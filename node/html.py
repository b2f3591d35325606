"""A page that is one file and needs nothing else, not even a network: its pieces, and what stands around them.

What comes from elsewhere goes through :func:`text`; the pieces do that for their cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def page(title: str, sections: Iterable[str]) -> str:
    """The whole file; empty sections are left out."""
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, sections)))


class Bold(str):
    """A cell in bold."""


def text(value: object) -> str:
    return escape(str(value))


def section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def bullets(items: Iterable[str]) -> str:
    listed = "".join(f"<li>{text(item)}</li>" for item in items)
    return f"<ul>{listed}</ul>" if listed else ""


def table(
    caption: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    text_columns: int = 1,
    group: int = 1,
) -> str:
    """A table whose first cells are row headers, each over ``group`` rows; columns after the text hold numbers."""
    head = "".join(f'<th scope="col"{_align(i, text_columns)}>{text(name)}</th>' for i, name in enumerate(headers))
    body = []
    for index, row in enumerate(rows):
        first = f'<th scope="row" rowspan="{group}">{text(row[0])}</th>' if index % group == 0 else ""
        cells = "".join(_cell(cell, _align(i, text_columns)) for i, cell in enumerate(row[1:], 1))
        body.append(f"<tr{' class=first' if first else ''}>{first}{cells}</tr>")
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _align(column: int, text_columns: int) -> str:
    return "" if column < text_columns else ' class="number"'


def _cell(value: object, align: str) -> str:
    return f"<td{align}>{f'<b>{text(value)}</b>' if isinstance(value, Bold) else text(value)}</td>"


_STYLE = """\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b2126; --soft: #66717b; --line: #d7dce0;
  --tint: #f3f6f8; --good: #17693c; --bad: #b3261e; --series1: #2667a8; --series2: #c46a00; --series3: #1c8465; 
  --series4: #a0407f; --series5: #7a7f87; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181b; --ink: #e4e8eb; --soft: #98a3ac; --line: #353d43;
  --tint: #1e2428; --good: #6fd39b; --bad: #ff9c92; --series1: #71ace8; --series2: #f0a94d; --series3: #55c7a2;
  --series4: #e08ac0; --series5: #a9b0b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 .5rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3, caption { margin: 1rem 0 .25rem; font-size: 1rem; font-weight: 600; text-align: left; }
header .verdict { padding: .6rem .8rem; border-left: .3rem solid; background: var(--tint); font-weight: 600; }
.verdict.ok { color: var(--good); }
.verdict.bad { color: var(--bad); }
.debug { padding: .6rem .8rem; border: 1px solid var(--series2); font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem 1rem; margin: 1rem 0; }
dl.saw { grid-template-columns: 1fr; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); border-bottom: 1px solid var(--soft); }
tr.first > * { border-top: 1px solid var(--line); }
th[scope="row"] { min-width: 6.5rem; }
td.number { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .85rem; max-width: 36rem; }
svg { display: block; width: 100%; height: auto; }
svg text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
pre { padding: .6rem .8rem; background: var(--tint); font-size: .8rem; white-space: pre-wrap; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media print {
  :root { color-scheme: light; --paper: white; --ink: black; --soft: dimgray; --line: silver; --tint: white;
    --good: black; --bad: black; }
  @page { margin: 18mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; }
  h2, h3, caption { break-after: avoid; }
  tr, dl > div { break-inside: avoid; }
  thead { display: table-header-group; }
}
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
