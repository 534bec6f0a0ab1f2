"""A text corpus as rows of tokens, all of one length, tokenised once.

Texts come from files or from the captions of shards. Documents are joined, [SEP] between them, and cut into rows
``[CLS] ... [SEP]``: no padding, so every row costs the same and every token teaches. The corpus is tokenised in pieces
(files together of about 64 MB, or a shard each), which the ranks share out; a finished piece is kept, so a build may be
stopped at any moment and goes on where it was:

    CACHE/<digest>/00000.npy   rows of piece 0, uint16 or uint32 [R, L]; its rest of less than a row is left out
    CACHE/<digest>/00000.json  written last: rows, documents, sha256

The digest is over tokenizer, row length and what the pieces are of (names, sizes and times of files, sha256 of
shards). 13M rows of 256 are 6.7 GB, read through memory maps.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ssmke import foreign_json
from ssmke.data.atomic import atomic_writer, make_folder, write_json
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.shards import keys_digest
from ssmke.data.stream import StreamConfig
from ssmke.errors import BadSample, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "ssmke-text-rows/1"
PIECE_BYTES = 64 << 20
"""Files are joined up to this size into one piece."""
LONGEST_DOCUMENT = 1 << 20
"""Characters after which a document without a blank line is cut."""
BATCH = 512
"""Documents that are tokenised at once."""
KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")


@dataclass
class CorpusConfig:
    """Texts and how they are fed."""

    files: tuple[str, ...] = ()
    """Files, folders (all such files below) or patterns: .txt (blank lines between documents) and .jsonl (one object
    with "text" a line), each also as .gz."""
    shards: tuple[str, ...] = ()
    """Dataset folders or addresses whose captions are the documents."""
    split: str = "train"
    """Split of the shards."""
    make: Literal["nothing", "scenes"] = "nothing"
    """What to render into the shard folder when it is missing."""
    cache: str = "cache/text"
    """Folder where tokenised rows are kept; all nodes must see it."""
    held_out: float = 0.001
    """Share of the rows (the last ones, at most 2,048) that is measured on and not trained on."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Workers."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How addresses are read."""

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.shards):
            raise ConfigError("give texts either as --data.files or as --data.shards")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"--data.held-out {self.held_out}: must lie between 0 and 1")
        if self.make == "scenes" and len(self.shards) != 1:
            raise ConfigError("--data.make scenes needs exactly one folder in --data.shards")


@dataclass(frozen=True)
class Piece:
    """A part of the corpus that is tokenised by itself."""

    name: str
    """For messages."""
    identity: list[Any]
    """JSON-able; changes when the content does."""
    documents: Callable[[], Iterator[str]]


class Corpus:
    """Rows of tokens [L], numbered through all pieces."""

    def __init__(self, folder: Path, pieces: int) -> None:
        self.folder = folder
        facts = [json.loads(_facts(folder, number).read_bytes()) for number in range(pieces)]
        self._first = np.cumsum([0, *(fact["rows"] for fact in facts)])
        self.documents = sum(fact["documents"] for fact in facts)
        self.digest = keys_digest(fact["sha256"] for fact in facts)
        """Of all tokens: what a run's order depends on."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._first[-1])

    def row(self, number: int) -> npt.NDArray[np.int64]:
        """Row ``number``, int64 [L]."""
        piece = int(np.searchsorted(self._first, number, side="right")) - 1
        tokens: npt.NDArray[np.int64] = self._maps[piece][number - self._first[piece]].astype(np.int64)
        return tokens

    def piece_of(self, number: int) -> str:
        """The file that holds row ``number``."""
        return str(_rows(self.folder, int(np.searchsorted(self._first, number, side="right")) - 1))

    @cached_property
    def _maps(self) -> list[npt.NDArray[Any]]:
        return [
            np.load(_rows(self.folder, number), mmap_mode="r", allow_pickle=False)
            for number in range(len(self._first) - 1)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}


def pieces_of(data: CorpusConfig) -> list[Piece]:
    """What the corpus is made of, in order. Raises `DataError` where there is nothing or something unknown."""
    return _shard_pieces(data) if data.shards else _file_pieces(data.files)


def cache_folder(
    data: CorpusConfig, pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, length: int
) -> Path:
    """Where the rows of these pieces, with this tokenizer, are kept."""
    parts = [FORMAT, length, tokenizer.backend_tokenizer.to_str(), [piece.identity for piece in pieces]]
    return Path(data.cache) / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def build(
    folder: Path,
    pieces: list[Piece],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    share: tuple[int, int],
    tell: Callable[[str], None],
    check: Callable[[], None],
) -> int:
    """Tokenises this rank's missing pieces, those of ``share`` (rank, ranks); gives their number.

    Raises:
        ConfigError: the tokenizer has no [CLS], [SEP] or [MASK].
        DataError: a file cannot be read, or the folder not be written.
        SSMKEError: from ``check``, which is called after every batch of documents.
    """
    for name in ("cls_token_id", "sep_token_id", "mask_token_id"):
        if getattr(tokenizer, name) is None:
            raise ConfigError(
                f"--model.text.tokenizer has no {name.removesuffix('_id')}: masked language models need one"
            )
    make_folder(folder)
    missing = [
        number for number in range(share[0], len(pieces), share[1]) if not _facts(folder, number).exists()
    ]
    for number in missing:
        tell(f"tokenising {pieces[number].name}")
        _build_piece(folder, number, pieces[number], tokenizer, length, check)
    return len(missing)


def _build_piece(
    folder: Path,
    number: int,
    piece: Piece,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    check: Callable[[], None],
) -> None:
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    separator = np.array([tokenizer.sep_token_id], kind)
    parts: list[npt.NDArray[Any]] = []
    counted, documents = 0, piece.documents()
    while batch := list(islice(documents, BATCH)):
        counted += len(batch)
        for tokens in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            parts += [np.array(tokens, kind), separator]
        check()
    body = np.concatenate(parts) if parts else np.empty(0, kind)
    rows = len(body) // (length - 2)
    whole = np.full((rows, length), tokenizer.sep_token_id, kind)
    whole[:, 0] = tokenizer.cls_token_id
    whole[:, 1:-1] = body[: rows * (length - 2)].reshape(rows, length - 2)
    buffer = io.BytesIO()
    np.save(buffer, whole, allow_pickle=False)
    with atomic_writer(_rows(folder, number)) as file:
        file.write(buffer.getvalue())
    facts = {
        "format": FORMAT,
        "rows": rows,
        "documents": counted,
        "sha256": hashlib.sha256(whole.tobytes()).hexdigest(),
    }
    write_json(_facts(folder, number), facts)


def _rows(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _facts(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _shard_pieces(data: CorpusConfig) -> list[Piece]:
    shards = ImageTextShards.open(data.shards, data.split, data.remote)

    def documents(number: int) -> Iterator[str]:
        index = shards.open_shard(number)
        for position in range(len(index)):
            try:
                captions = index.read(position).captions
            except BadSample:
                continue
            for caption in captions:
                try:
                    yield clean_caption(caption)
                except BadSample:
                    continue

    return [
        Piece(str(path), [info.sha256], lambda number=number: documents(number))  # type: ignore[misc]
        for number, (path, info, _) in enumerate(shards.shards)
    ]


def _file_pieces(places: tuple[str, ...]) -> list[Piece]:
    groups: list[list[Path]] = []
    size = PIECE_BYTES
    for path in dict.fromkeys(file for place in places for file in _found(place)):
        own = path.stat().st_size
        if size + own > PIECE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += own
    return [_piece(group) for group in groups]


def _piece(group: list[Path]) -> Piece:
    def documents() -> Iterator[str]:
        for path in group:
            yield from _documents(path)

    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in group]
    name = str(group[0]) if len(group) == 1 else f"{group[0]} and {len(group) - 1} more"
    return Piece(name, [list(fact) for fact in facts], documents)


def _found(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and file.name.endswith(KINDS)]
    elif path.is_file():
        files = [path]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]  # noqa: PTH207
    if not files:
        raise DataError(f"--data.files {place}: there is no file of {', '.join(KINDS)}")
    for file in files:
        if not file.name.endswith(KINDS):
            raise DataError(f"--data.files {file}: unknown kind of file; use {', '.join(KINDS)}")
    return sorted(files)


def _documents(path: Path) -> Iterator[str]:
    opened = gzip.open if path.name.endswith(".gz") else io.open
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            yield from _of_lines(path, file) if lines else _of_paragraphs(file)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy it again, or leave it out") from None


def _of_lines(path: Path, file: Any) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            text = foreign_json.loads(line)["text"]
            if not isinstance(text, str):
                raise TypeError("it is no text")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: not an object with "text" ({type(error).__name__}: {error})'
            ) from None
        if text.strip():
            yield text


def _of_paragraphs(file: Any) -> Iterator[str]:
    document, size = [], 0
    for line in file:
        if line.strip():
            document.append(line)
            size += len(line)
        if document and (not line.strip() or size >= LONGEST_DOCUMENT):
            yield "".join(document)
            document, size = [], 0
    if document:
        yield "".join(document)
