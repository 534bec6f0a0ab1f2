"""Answers to look at: as a table for the terminal, a page, a contact sheet, and JSON.

One query gives a list with scores, several the table of a talk: id, query, retrievals 1 to 5, the right ones marked.
The page holds its thumbnails itself and loads nothing; what captions and file names say is escaped, and the content
security policy of `ssmke.cost.render.policy` allows no script, should an escape ever be missed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.table import Table

from ssmke.cost.render.html import escaped
from ssmke.cost.render.policy import head
from ssmke.data.contact_sheet import RIGHT, contact_sheet, placeholder
from ssmke.errors import ConfigError
from ssmke.search.find import Answer
from ssmke.search.index import Hit, SearchIndex
from ssmke.words import printable

MOST_CELLS = 600
"""Of a contact sheet."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #d8dde3; --page: #fff; --card: #f6f8fa;
  --right: #1a7f4b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4af; --line: #343b43; --page: #14181c; --card: #1b2026; --right: #4cc38a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .25rem; }
.facts, .id { color: var(--soft); font-size: .875rem; margin: 0; }
section { border-top: 1px solid var(--line); margin-top: 1.5rem; padding-top: 1rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; font-weight: 600; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
li.right { border: 3px solid var(--right); }
img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--line); }
li p { margin: 0; padding: .5rem .75rem; font-size: .875rem; }
li p + p { padding-top: 0; }
.mark { color: var(--right); font-weight: 600; }
"""


def table(answers: Sequence[Answer], title: str) -> Table:
    """The terminal's table: of one query its hits, of several the talk's."""
    return _list(answers[0], title) if len(answers) == 1 else _demo(answers, title)


def summary(answers: Sequence[Answer]) -> str:
    """How many queries found a right picture; empty where none is known."""
    judged = [answer for answer in answers if answer.query.right]
    if not judged:
        return ""
    first = sum(any(map(answer.is_right, answer.hits[:1])) for answer in judged)
    found = sum(any(map(answer.is_right, answer.hits)) for answer in judged)
    top = max(len(answer.hits) for answer in judged)
    return (
        f"right at the first place: {first} of {len(judged)}; among the first {top}: {found} of {len(judged)}"
    )


def as_json(answers: Sequence[Answer], index: SearchIndex) -> dict[str, Any]:
    """Everything of the answers but the pictures."""
    return {
        "task": "search",
        "index": str(index.folder.resolve()),
        "model": {"name": index.manifest.model, "weights_sha256": index.manifest.digest},
        "answers": [
            {
                "query": _text(answer.query.text),
                "right": sorted(map(_text, answer.query.right)),
                "searched": answer.target,
                "hits": [
                    {
                        "rank": rank,
                        "score": round(hit.score, 6),
                        "key": _text(hit.item.key),
                        "id": _text(hit.item.id),
                        "place": _text(place(index, hit)),
                        "captions": [hit.caption] if hit.caption else hit.item.captions,
                        **({"right": answer.is_right(hit)} if answer.query.right else {}),
                    }
                    for rank, hit in enumerate(answer.hits, 1)
                ],
            }
            for answer in answers
        ],
    }


def page(answers: Sequence[Answer], index: SearchIndex, title: str) -> str:
    """One HTML page with all answers, thumbnails included: about 20 kB each."""
    facts = f"{len(index):,} pictures, model {index.manifest.model} ({index.manifest.digest[:12]})"
    told = summary(answers)
    body = "\n".join(_section(answer, index) for answer in answers)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{head(_STYLE)}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n</head>\n<body>\n<main>\n<h1>{escaped(title)}</h1>\n"
        f'<p class="facts">{escaped(facts)}{"<br>" + escaped(told) if told else ""}</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def sheet(answers: Sequence[Answer], index: SearchIndex, title: str) -> Image.Image:
    """A contact sheet: a row of pictures for each query, the right ones framed.

    Raises:
        ConfigError: more pictures than a sheet can hold.
    """
    columns = max(len(answer.hits) for answer in answers)
    if len(answers) * (columns + 1) > MOST_CELLS:
        raise ConfigError(
            f"--sheet: {len(answers)} queries of {columns} pictures do not fit on one sheet; give --html instead, or "
            "fewer queries."
        )
    cells: list[tuple[Image.Image, list[str]]] = []
    borders: list[str | None] = []
    for answer in answers:
        cells.append((_query_tile(answer), [_quoted(answer)]))
        borders.append(None)
        for rank in range(columns):
            if rank >= len(answer.hits):
                cells.append((placeholder(""), []))
                borders.append(None)
                continue
            hit = answer.hits[rank]
            words = printable(hit.caption or hit.item.id)
            cells.append((_picture(index, hit.row), [f"{rank + 1}.  {hit.score:.3f}  {words}"]))
            borders.append(RIGHT if answer.is_right(hit) else None)
    subtitle = f"{len(index):,} pictures; numbers are cosines. {summary(answers)}"
    return contact_sheet(cells, 1 + columns, title, subtitle=subtitle, borders=borders, thumbnail=208)


def place(index: SearchIndex, hit: Hit) -> str:
    """Where the picture of a hit was when it was indexed."""
    places = index.manifest.sources
    return f"{places[hit.item.source] if hit.item.source < len(places) else '?'}/{hit.item.member}"


def _list(answer: Answer, title: str) -> Table:
    shown = Table(title=escape(title), title_justify="left")
    shown.add_column("", justify="right")
    shown.add_column("cosine", justify="right")
    shown.add_column("id", overflow="fold")
    shown.add_column("caption" if answer.target == "captions" else "first caption", overflow="fold")
    for rank, hit in enumerate(answer.hits, 1):
        caption = hit.caption or next(iter(hit.item.captions), "")
        style = "green" if answer.is_right(hit) else None
        shown.add_row(str(rank), f"{hit.score:.3f}", _marked(answer, hit), escape(caption), style=style)
    return shown


def _demo(answers: Sequence[Answer], title: str) -> Table:
    shown = Table(title=escape(title), title_justify="left", show_lines=True)
    shown.add_column("id", overflow="fold")
    shown.add_column("query", overflow="fold")
    for rank in range(1, 1 + max(len(answer.hits) for answer in answers)):
        shown.add_column(str(rank), overflow="fold")
    for answer in answers:
        cells = []
        for hit in answer.hits:
            cell = escape(printable(hit.caption)) if hit.caption else _marked(answer, hit)
            cells.append(f"[green]{cell}[/]" if answer.is_right(hit) else cell)
        shown.add_row(escape(printable(answer.query.id)) or "-", escape(answer.query.text), *cells)
    return shown


def _marked(answer: Answer, hit: Hit) -> str:
    return f"{escape(printable(hit.item.id))}{' ✓' if answer.is_right(hit) else ''}"


def _section(answer: Answer, index: SearchIndex) -> str:
    items = "\n".join(_figure(answer, index, rank, hit) for rank, hit in enumerate(answer.hits, 1))
    number = f'<p class="id">{escaped(answer.query.id)}</p>\n' if answer.query.id else ""
    return f"<section>\n{number}<h2>{escaped(_quoted(answer))}</h2>\n<ol>\n{items}\n</ol>\n</section>"


def _figure(answer: Answer, index: SearchIndex, rank: int, hit: Hit) -> str:
    right = answer.is_right(hit)
    caption = hit.caption or next(iter(hit.item.captions), "")
    data = base64.b64encode(index.thumbnail(hit.row)).decode()
    mark = ' <span class="mark">✓ right</span>' if right else ""
    words = f"<p>{escaped(caption)}</p>" if caption else ""
    return (
        f"<li{' class=' + chr(34) + 'right' + chr(34) if right else ''}>"
        f'<img alt="{escaped(caption or hit.item.id)}" src="data:image/jpeg;base64,{data}">'
        f"<p>{rank}. {escaped(hit.item.id)}, cosine {hit.score:.3f}{mark}</p>{words}</li>"
    )


def _quoted(answer: Answer) -> str:
    return answer.query.text if answer.query.image is not None else f"“{answer.query.text}”"


def _query_tile(answer: Answer) -> Image.Image:
    if answer.query.image is None:
        return placeholder("query")
    from ssmke.data.decode import decode_image

    return decode_image(answer.query.image)


def _picture(index: SearchIndex, row: int) -> Image.Image:
    with Image.open(io.BytesIO(index.thumbnail(row)), formats=("JPEG",)) as image:
        return image.convert("RGB")


def _text(text: str) -> str:
    """What files are named need not be text."""
    return text.encode("utf-8", "replace").decode()
