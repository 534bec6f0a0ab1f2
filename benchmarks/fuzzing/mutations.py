"""Bytes that a reader gets past its first check of: real files with something wrong in them.

Coverage guidance alone takes long to get a checksum right. So the form of a file is told from its beginning, and a
change is made within that form: a JSON value becomes a hostile one, a header of a tar gets its checksum right again, a
member of a zip or a chunk of a PNG too. Half of the changes are to plain bytes all the same.
"""

from __future__ import annotations

import io
import json
import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

MOST = 1 << 16
"""Bytes of an input."""

HOSTILE_JSON = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "1", "-0.0", "9223372036854775807", "9223372036854775808",
    "-9223372036854775809", "1" + "0" * 30, "9" * 5000, "1e308", "0.5", "true", "false", "null", '""', '"\\ud800"',
    '"\\u0000"', '"../../outside"', '"/tmp/outside"', '"a/b"', '".."', '"' + "x" * 300 + '"', '"auto"', "[]", "{}",
    "[[]]",
    "[null]", "[1,2]", '{"a":1,"a":2}', '{"":{}}', "[" * 600 + "]" * 600, "[" * 5000 + "]" * 5000,
    '{"a":' * 600 + "1" + "}" * 600, "[" * 20000,
)  # fmt: skip
_NUMBERS = (b"0", b"-1", b"99999999999", b"nan", b"inf", b"1e400", b"-0", b"1e-400", b"\xd9\xa3", b"9" * 4400)
_NAMES = (
    b"../../outside.json",
    b"/tmp/outside.jpg",
    b"..",
    b".",
    b"",
    b"a/b.jpg",
    b"\xff\xfe.jpg",
    b"x" * 99,
    b"a\\b.jpg",
)
_SIZES = (
    b"77777777777", b"00000000000", b"-0000000001", b"           ", b"00000000001", b"zzzzzzzzzzz",
    b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12, b"\xff" + b"\xff" * 10 + b"\x00", b"\x80" + b"\0" * 10 + b"\x01",
    b"00000001000", b"00000002000", b"\x80" + b"\0" * 5 + b"\x01" + b"\0" * 5,
)  # fmt: skip


def mutate(data: bytes, chance: random.Random) -> bytes:
    """``data`` with one or a few changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = _plain if chance.random() < 0.4 else _form(data)
        try:
            data = change(data, chance)
        except (ValueError, KeyError, IndexError, struct.error, zipfile.BadZipFile, zlib.error, RecursionError,
                NotImplementedError, RuntimeError, EOFError, OSError, OverflowError, TypeError,
                lzma.LZMAError):  # fmt: skip
            data = _plain(data, chance)  # it lost its form to an earlier change
    return data[:MOST]


def _form(data: bytes) -> Callable[[bytes, random.Random], bytes]:
    start = data[:512].lstrip()
    if data.startswith(b"PK"):
        return _zip
    if data[257:262] == b"ustar":
        return _tar
    if data.startswith(b"\x89PNG"):
        return _png
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data[8:9] == b"{" and data[7:8] == b"\0":
        return _safetensors
    if start.startswith((b"{", b"[")):
        return _json
    return _plain if b"\0" in data[:64] else _text


def _plain(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 1, 2, 4, 8, 32, 512))
    kind = chance.randrange(7)
    if kind == 0:
        return data[:at] + bytes(chance.randrange(256) for _ in range(size)) + data[at:]
    if kind == 1:
        return data[:at] + data[at + size :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        other = chance.randrange(len(data) + 1)
        return data[:at] + data[other : other + size] + data[at:]
    if kind == 4:
        return data[:at] + chance.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * size + data[at + size :]
    if kind == 5:
        return data[:at] + chance.choice((*_NUMBERS, *_NAMES)) + data[at:]
    flipped = bytearray(data)
    if flipped:
        flipped[at % len(flipped)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _json(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    number = 0
    try:
        tree = json.loads(data)
        whole = True
    except ValueError:
        number, whole = chance.randrange(len(lines)), False
        tree = json.loads(lines[number])
    where = _places(tree, [])
    mark = '"@hostile@"'
    if not where or chance.random() < 0.05:
        text = chance.choice(HOSTILE_JSON)
    else:
        holder, key = chance.choice(where)
        kind = chance.randrange(10)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("a", "..", "../x", "\ud800", "begin"))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind == 3:
            other, name = chance.choice(where)
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = "@hostile@"
        text = json.dumps(tree).replace(mark, chance.choice(HOSTILE_JSON))
    if whole:
        return text.encode()
    lines[number] = text.encode()
    return b"\n".join(lines)


def _places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found.append((tree, key))
        _places(tree[key], found)
    return found


def _tar(data: bytes, chance: random.Random) -> bytes:
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = chance.choice(heads)
    head = bytearray(data[at : at + 512])
    kind = chance.randrange(5)
    if kind == 0:
        size = chance.choice(_SIZES)
        head[124 : 124 + len(size)] = size
    elif kind == 1:
        head[156:157] = chance.choice(
            (b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"D")
        )
    elif kind == 2:
        head[0:100] = chance.choice(_NAMES).ljust(100, b"\0")[:100]
    elif kind == 3:
        place = chance.randrange(345, 512)  # prefix, and GNU's sparse map
        head[place : place + 12] = chance.choice(_SIZES).ljust(12, b"\0")[: 512 - place]
        head = head[:512]
    else:
        length = chance.randrange(1, 12)
        body = chance.choice(
            (
                b"size=-512",
                b"size=99999999999999999999",
                b"path=../../x",
                b"GNU.sparse.map=0,9,x",
                b"size=1e9",
            )
        )
        record = f"{length} ".encode() + body + b"\n" if chance.random() < 0.3 else _pax(body)
        extended = bytearray(head)
        extended[156:157] = chance.choice((b"x", b"g"))
        extended[124:136] = f"{len(record):011o}\0".encode()
        block = record + bytes(-len(record) % 512)
        return data[:at] + _checksummed(extended) + block + data[at:]
    return data[:at] + _checksummed(head) + data[at + 512 :]


def _pax(body: bytes) -> bytes:
    length = len(body) + 3
    while len(str(length)) + len(body) + 2 != length:
        length += 1
    return f"{length} ".encode() + body + b"\n"


def _checksummed(head: bytearray) -> bytes:
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head)


def _zip(data: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    number = chance.randrange(len(members))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i, (info, content) in enumerate(members):
            changed = content
            kept = zipfile.ZipInfo(info.filename)
            kept.compress_type = info.compress_type
            if i == number:
                kind = chance.randrange(8)
                if kind == 0:
                    continue
                if kind == 1:
                    kept.compress_type = chance.choice(
                        (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                    )
                elif kind == 2:
                    kept.filename = chance.choice(_NAMES).decode("latin-1")
                elif kind == 3 and content.startswith(b"\x93NUMPY"):
                    shape = chance.choice(
                        (b"(99999999999,)", b"()", b"(-1,)", b"(2, 3)", b"(1,)", b"((((", b"None")
                    )
                    changed = content.replace(b"(", shape + b" ", 1)
                else:
                    changed = mutate(content, chance)
            archive.writestr(kept, changed)
    return out.getvalue()


def _png(data: bytes, chance: random.Random) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = chance.randrange(len(chunks))
    name, body = chunks[number]
    kind = chance.randrange(5)
    if kind == 0 and name == b"IHDR":
        width, height = chance.choice(
            ((20, 20), (1 << 31 - 1, 1), (9000, 9000), (60000, 60000), (0, 5), (16, 5_000_000))
        )
        body = struct.pack(">II", width, height) + body[8:]
    elif kind == 1:
        name = chance.choice(
            (
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"iCCP",
                b"zTXt",
                b"iTXt",
                b"tEXt",
                b"eXIf",
                b"tRNS",
                b"PLTE",
                b"IDAT",
            )
        )
    elif kind == 2:
        chunks.insert(number, chunks[chance.randrange(len(chunks))])
    elif kind == 3:
        body = _plain(body, chance)
    else:
        body = zlib.compress(bytes(1 << 22)) if name == b"IDAT" else bytes([chance.randrange(20)]) + body[1:]
    chunks[number] = (name, body)
    return data[:8] + b"".join(
        struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks
    )


def _jpeg(data: bytes, chance: random.Random) -> bytes:
    marks = [at for at in range(len(data) - 3) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    at = chance.choice(marks)
    size = int.from_bytes(data[at + 2 : at + 4], "big")
    kind = chance.randrange(4)
    if kind == 0:
        return (
            data[: at + 1]
            + bytes([chance.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE))])
            + data[at + 2 :]
        )
    if kind == 1:
        return data[:at] + data[at : at + 2 + size] * chance.choice((2, 3, 50)) + data[at + 2 + size :]
    if kind == 2:
        return data[:at] + data[at + 2 + size :]
    inside = at + 4 + chance.randrange(max(1, size))
    return data[:inside] + bytes([chance.choice((0, 1, 2, 3, 4, 0x11, 0x44, 0xFF))]) + data[inside + 1 :]


def _safetensors(data: bytes, chance: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    head = _json(data[8 : 8 + size], chance)
    stated = len(head) if chance.random() < 0.9 else chance.choice((0, 1, 1 << 40, (1 << 64) - 1))
    return stated.to_bytes(8, "little") + head + data[8 + size :]


def _text(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    number = chance.randrange(len(lines))
    kind = chance.randrange(5)
    if kind == 0:
        lines.insert(number, lines[chance.randrange(len(lines))])
    elif kind == 1:
        del lines[number]
    elif kind == 2:
        lines[number] = lines[number] + chance.choice(
            (b",", b"\t", b'"', b"'", b"\0", b"\r", b"\xff", b"\xc3", b"\xe2\x80\xa8")
        )
    else:
        mark = chance.choice((b",", b"\t", b"=", b" "))
        parts = lines[number].split(mark)
        token = chance.choice((*_NUMBERS, *_NAMES, *(text.encode() for text in HOSTILE_JSON)))
        parts[chance.randrange(len(parts))] = token
        lines[number] = mark.join(parts)
    return b"\n".join(lines)
