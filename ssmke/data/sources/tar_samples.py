"""The samples of a foreign webdataset tar: which members make one, and what of them is kept.

A sample is an image (``jpg``, ``png``, ``webp``), with its captions from the JSON or the text file beside it.
Members of other kinds are passed over unread. Text of more than a megabyte is no caption and is not read; of
the JSON only short, known fields are kept, so nothing in it can blow up a shard. One sample is in memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssmke.data.import_state import Skip
from ssmke.data.importing import MAX_FILE_BYTES, UNREADABLE, Checks, pick_extra
from ssmke.data.parallel import tick
from ssmke.data.shard_scan import IMAGE_EXTENSIONS
from ssmke.data.shards import Sample, make_key
from ssmke.data.sources.tar_members import Member, folder_members, storable, tar_members
from ssmke.errors import BadSample

MAX_TEXT_BYTES = 1 << 20
"""Of a JSON or a text file; the longest captions that are kept have 2,000 characters."""
CAPTION_FIELDS = ("captions", "caption", "text")
KEPT_FIELDS = ("url", "original_width", "original_height", "id", "image_id", "imgid", "cocoid", "uid")
IMAGES = (*IMAGE_EXTENSIONS, "jpeg")


@dataclasses.dataclass(frozen=True)
class TarSamples:
    """One tar, or one folder of img2dataset's "files" format."""

    path: Path
    number: int
    """Among all, by name."""
    prefix: str
    separate: bool
    """Whether no tar's prefix is the beginning of another's."""
    caption_field: str
    checks: Checks

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        seen: set[str] = set()  # keys of the tar
        written: set[str] = set()  # keys of the shard
        for group in self._groups(skips):
            place = Skip(
                self.number,
                f"{storable(self.path.name)}: {storable(group.name)}",
                self.checks.split,
                "",
            )
            key = self._key(group.key)
            if group.key in seen:
                skips.append(dataclasses.replace(place, reason="split sample", detail="its key came before"))
            elif group.problem is not None:
                problem = group.problem
                skips.append(dataclasses.replace(place, reason=problem.reason, detail=problem.detail))
            elif key in written:
                skips.append(dataclasses.replace(place, reason="duplicate key", detail=key))
            else:
                sample = self._sample(group, key, place, skips)
                if sample is not None:
                    written.add(key)
                    yield sample
            seen.add(group.key)
            tick()

    def _sample(self, group: _Group, key: str, place: Skip, skips: list[Skip]) -> Sample | None:
        try:
            record = _record(group.json)
            captions, not_text = _captions(record, group.text, self.caption_field)
        except BadSample as error:
            skips.append(dataclasses.replace(place, reason=error.reason, detail=error.detail))
            return None
        skips.extend(
            dataclasses.replace(
                place, reason="caption not text", detail=detail, caption=len(captions) + number
            )
            for number, detail in enumerate(not_text)
        )
        extra = pick_extra(record, KEPT_FIELDS)
        if key != group.key:
            extra |= pick_extra({"original_key": group.key}, ["original_key"])

        def image() -> bytes:
            if group.image is None:
                raise BadSample("no image")
            return group.image

        return self.checks.sample(place, key, captions, image, extra, skips)

    def _key(self, key: str) -> str:
        if not self.separate:
            return make_key(
                f"{self.prefix}/{key}"
            )  # the slash is no character of a key, so a digest is added
        return make_key(key if key.startswith(self.prefix) else f"{self.prefix}-{key}")

    def _groups(self, skips: list[Skip]) -> Iterator[_Group]:
        """Samples as they are in the tar; ends at damage, which is noted."""
        group: _Group | None = None
        try:
            for member in (folder_members if self.path.is_dir() else tar_members)(self.path):
                if member.unsafe:
                    place = f"{storable(self.path.name)}: {storable(member.name)}"
                    skips.append(Skip(self.number, place, self.checks.split, "unsafe member", member.unsafe))
                    continue
                if group is None or group.key != member.key:
                    if group is not None:
                        yield group
                    group = _Group(member.key, member.name)
                group.take(member)
        except BadSample as error:
            # Also of a member that is read: then the tar ends there.
            if group is not None:
                yield group
            skips.append(
                Skip(self.number, storable(self.path.name), self.checks.split, error.reason, error.detail)
            )
        else:
            if group is not None:
                yield group


@dataclasses.dataclass
class _Group:
    """The members of one sample, as far as they were read."""

    key: str
    name: str
    """Of the first member."""
    image: bytes | None = None
    text: bytes | None = None
    json: bytes | None = None
    problem: BadSample | None = None
    """Why the sample cannot be used."""

    def take(self, member: Member) -> None:
        if member.extension in IMAGES and self.image is None:
            if member.size > MAX_FILE_BYTES:
                self.problem = BadSample("file too large", f"{member.size:,} bytes")
            else:
                self.name, self.image = member.name, self._read(member)
        elif member.extension in ("txt", "json"):
            if member.size > MAX_TEXT_BYTES:
                self.problem = BadSample("text too large", f"{storable(member.name)}: {member.size:,} bytes")
            elif member.extension == "txt":
                self.text = self._read(member)
            else:
                self.json = self._read(member)

    def _read(self, member: Member) -> bytes | None:
        try:
            return member.read()
        except BadSample as error:
            if error.reason != UNREADABLE:
                raise  # the tar ends here
            self.problem = error
            return None


def _record(data: bytes | None) -> dict[str, Any]:
    """The JSON of a sample; empty if there is none, or it is no object."""
    if data is None:
        return {}
    try:
        record = json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise BadSample("broken JSON", str(error)) from None
    return record if isinstance(record, dict) else {}


def _captions(record: dict[str, Any], text: bytes | None, field: str) -> tuple[list[str], list[str]]:
    """The captions of the first place that has any, and what else lists of captions held up to there."""
    not_text: list[str] = []
    for name in (field,) if field else CAPTION_FIELDS:
        value = record.get(name)
        captions = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        not_text += [
            f"{name}[{number}] is {'null' if caption is None else type(caption).__name__}"
            for number, caption in enumerate(captions)
            if not isinstance(caption, str)
        ]
        captions = [caption for caption in captions if isinstance(caption, str)]
        if any(caption.strip() for caption in captions):
            return captions, not_text
    return [] if field or text is None else [text.decode("utf-8", "surrogateescape")], not_text
