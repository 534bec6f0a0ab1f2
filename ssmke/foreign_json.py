"""JSON that others may have written, or a disk damaged: read so that only ``ValueError`` can come of it.

`json` takes any depth until Python's stack ends, and whoever walks the result later ends there too, so `loads` refuses
what is nested deeper than anything of ours. `record` makes a dataclass of an object and looks at every type: a text
where a count should be would else fail far away from its file. Costs twice the parsing; for files of a few megabytes.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from typing import Any, TypeVar, Union

DEEPEST = 64
_Record = TypeVar("_Record")


def loads(text: str | bytes) -> Any:
    """The value. ValueError where ``text`` is no JSON, or nested more than `DEEPEST` levels deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} levels deep")


def record(kind: type[_Record], values: Any) -> _Record:
    """The dataclass ``kind`` with the fields ``values``.

    ValueError names a field that is missing, unknown or of another type; numbers are finite, whole ones at least 0.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it is {_shown(values)}, not an object")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"the field {name[:40]!a} is unknown")
        if not fits(value, hints[name]):
            raise ValueError(f"{name} is {_shown(value)}")
    try:
        return kind(**values)
    except TypeError as error:  # only a missing field is left
        raise ValueError(str(error).partition("() ")[2] or str(error)) from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of an annotated type; whole numbers at least 0."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is dict:
        _, inner = typing.get_args(hint)
        return isinstance(value, dict) and all(fits(one, inner) for one in value.values())
    if hint is Any:
        return True
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 63
    return type(value) is hint


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
