"""A console for tables and lines of what others wrote.

`rich` makes escape sequences from styles, never from text, so text can be cleaned where it becomes pieces of output: in
one place for all that is printed.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ssmke.words import on_screen


class CleanConsole(Console):
    """A console whose text cannot steer the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(on_screen(piece.text), piece.style)
