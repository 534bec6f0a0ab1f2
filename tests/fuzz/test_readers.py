"""Every reader of foreign files, in small: the targets of `benchmarks.fuzz` with derandomised examples.

Coverage guidance finds, hypothesis keeps: a few dozen changed files a target here, minutes of them there. Below are the
findings so far, each as the smallest file that showed it.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.fuzzing import guard
from benchmarks.fuzzing.data import picture
from benchmarks.fuzzing.guard import Broken, Target, examine, scratch
from benchmarks.fuzzing.mutations import mutate
from benchmarks.fuzzing.targets import TARGETS
from ssmke.data.decode import EncodedImage, decode_image
from ssmke.errors import BadSample

SLOW = {"ledger": 12, "model-folder": 12, "shard-tar": 20, "shard-index": 25, "image": 30}
"""Examples of targets that take milliseconds each."""


@pytest.fixture(scope="module")
def places() -> Iterator[Callable[[str], tuple[Target, Path, list[tuple[str, bytes]]]]]:
    """A target with its prepared folder and seeds, made once."""
    made: dict[str, tuple[Target, Path, list[tuple[str, bytes]]]] = {}
    with scratch() as folder:

        def place(name: str) -> tuple[Target, Path, list[tuple[str, bytes]]]:
            if name not in made:
                (folder / name).mkdir()
                TARGETS[name].prepare(folder / name)
                made[name] = TARGETS[name], folder / name, list(TARGETS[name].seeds(folder / name))
            return made[name]

        yield place


Place = Callable[[str], tuple[Target, Path, list[tuple[str, bytes]]]]


@pytest.mark.parametrize("name", TARGETS)
def test_real_files_are_read(places: Place, name: str) -> None:
    target, folder, seeds = places(name)
    for variant, content in seeds:
        assert examine(target, target.join(variant, content), folder), variant


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_give_a_result_or_an_error_of_ours(places: Place, name: str) -> None:
    target, folder, seeds = places(name)

    @given(seed=st.sampled_from(seeds), number=st.integers(0, 1 << 32), noise=st.binary(max_size=40))
    @settings(
        max_examples=SLOW.get(name, 60), deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    def holds(seed: tuple[str, bytes], number: int, noise: bytes) -> None:
        chance = random.Random(number)
        content = noise if number % 16 == 0 else mutate(seed[1], chance)
        examine(target, target.join(seed[0], content), folder)

    holds()


def headed(name: bytes, size: bytes, kind: bytes = b"0", body: bytes = b"") -> bytes:
    """A tar of one member with a header of these fields and a right checksum."""
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    head[0:100] = name.ljust(100, b"\0")
    head[124:136] = size.ljust(12, b"\0")
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + body + bytes(-len(body) % 512)


def followed(*parts: bytes) -> bytes:
    return b"".join(parts) + bytes(1024)


def pth(edit: Callable[[bytes], bytes]) -> bytes:
    """A torch file with its pickle changed."""
    out, changed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(2)}, out)
    with zipfile.ZipFile(io.BytesIO(out.getvalue())) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, edit(content) if info.filename.endswith("data.pkl") else content)
    return changed.getvalue()


def npz(compress: bool = False, **changed: object) -> bytes:
    """An index of three samples in a tar of 10,240 bytes, with arrays replaced."""
    arrays: dict[str, object] = {
        name: np.array([600, 700, 800])
        for name in ("image_offset", "image_size", "json_offset", "json_size", "json_crc32")
    }
    arrays |= {
        "keys": np.array(["a", "b", "c"]),
        "captions": np.array([1, 1, 1], np.int32),
        "tar_bytes": np.array(10240),
    }
    out = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(out, **(arrays | changed))  # type: ignore[arg-type]
    return out.getvalue()


DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
STATE = json.dumps(
    {"format": "ssmke-import/1", "identity": {"importer": "tars", "--split": "train", "--max-side": 0}}
)
OUTSIDE = json.dumps({"shard": "../../outside.tar", "plan": "p", "info": None, "origin": None, "skips": []})
NEGATIVE = b"\xff" * 10 + b"\xfe\x00"
GIF_OF_ITSELF = b"\x80\x02]q\x00(h\x00h\x00e."  # a pickled list that holds itself, twice
PALETTE = picture("PNG", mode="P")

FINDINGS = [
    ("shard-tar", "tar", followed(headed(b"a.jpg", NEGATIVE)), "a negative size"),
    (
        "shard-tar",
        "tar",
        followed(headed(b"a.jpg", b"00000000000"), headed(b"a.json", b"77777777777")),
        "8 GB of JSON",
    ),
    ("shard-tar", "tar", followed(headed(b"p", b"77777777777", b"x")), "an extended header of 8 GB"),
    (
        "shard-tar",
        "tar",
        followed(headed(b"p", b"00000000012", b"x", b"9 size=-5\n")),
        "an extended header with nonsense",
    ),
    ("shard-index", "npz", npz().replace(b"'descr'", b"'desc\xe2\x80'"), "an array header that is no Python"),
    ("shard-index", "npz", npz(keys=np.array([1, 2, 3])), "keys that are numbers"),
    ("shard-index", "npz", npz(image_offset=np.array([1, 2, 3], np.uint64)), "offsets of another kind"),
    ("shard-index", "npz", npz(captions=np.array([1, -1, 1])), "a negative count"),
    ("shard-index", "npz", npz(compress=True, pad=np.zeros(1 << 20)), "a compressed index"),
    ("manifest", "json", DEEP, "JSON nested 20,000 deep"),
    ("image", "file", PALETTE.replace(b"PLTE", b"pLTE"), "a palette picture without palette"),
    ("records", "downloads.json", DEEP, "JSON nested 20,000 deep"),
    (
        "records",
        "downloads.json",
        b'{"files": [{"name": [1]}], "links": {"failures": {"a": "b"}}}',
        "text for counts",
    ),
    ("records", "list.json", DEEP, "JSON nested 20,000 deep"),
    ("records", "list.json", b'{"format": "ssmke-urls/1"}', "a state without its fields"),
    (
        "import-state",
        "state",
        f"{STATE}\n{OUTSIDE}\n".encode(),
        "a shard outside of the folder, to be deleted",
    ),
    (
        "import-state",
        "state",
        f"{STATE}\n{OUTSIDE.replace('../../outside.tar', '/tmp/outside.tar')}\n".encode(),
        "another",
    ),
    (
        "import-state",
        "state",
        f"{STATE}\n{OUTSIDE.replace('../../outside', 'a').replace('null', '[]', 1)}\n".encode(),
        "types",
    ),
    (
        "captions",
        "flickr_annotations_30k.csv",
        b'raw,split,"filename\n',
        "a quotation mark in the first line",
    ),
    ("link-list", "links.parquet", b"PAR1", "a parquet file of four bytes"),
    ("sbu", "sbu.json", b'{"image_urls": 5, "captions": 5}', "numbers for lists"),
    ("sbu", "sbu.json", DEEP, "JSON nested 20,000 deep"),
    ("sbu", "sbu.tar.gz", followed(headed(b"a", NEGATIVE)), "a negative size, for ever"),
    ("unpack", "tar", followed(headed(b"a.jpg", NEGATIVE)), "a negative size, for ever"),
    ("weights-torch", "pth", pth(lambda data: data[: len(data) // 2] + b"."), "a pickle cut in the middle"),
    ("weights-torch", "pth", pth(lambda data: b"\x80\x02h\x07."), "a pickle that takes what it never put"),
    ("weights-torch", "pth", pth(lambda data: GIF_OF_ITSELF), "a list that holds itself"),
    ("weights-torch", "pth", struct.pack("<B", 0x80) + b"\x02K", "a file that ends in a number"),
    ("deepspeed-json", "json", DEEP, "JSON nested 20,000 deep"),
    ("deepspeed-json", "json", b'{"zero_optimization": [2]}', "a list for a section"),
    ("deepspeed-json", "json", b'{"zero_optimization": {"stage": "two"}}', "a stage in words"),
    ("deepspeed-json", "json", b'{"zero_optimization": {"stage": 1e999}}', "an infinite stage"),
    ("deepspeed-json", "json", b'{"fp16": null, "bf16": {"enabled": [1]}}', "a list for a switch"),
    ("run-folder", "recipe.json", b"[]", "a list for a recipe"),
    ("run-folder", "recipe.json", DEEP, "JSON nested 20,000 deep"),
    ("run-folder", "lineage.json", b"[1]", "a list for a lineage"),
    ("run-folder", "lineage.json", b'{"lineage": 5}', "a number for a lineage"),
    ("run-folder", "metrics.jsonl", b'{"step": "four"}\n[]\n' + DEEP + b"\n", "lines of other kinds"),
    ("run-folder", "unsent.jsonl", b"\xff\n" + DEEP + b"\n", "bytes that are no text"),
    ("run-folder", "COMPLETE.json", DEEP, "JSON nested 20,000 deep"),
    ("target-cache", "cache.json", DEEP, "JSON nested 20,000 deep"),
    (
        "target-cache",
        "train-00000.json",
        b'{"images": 3, "keys_sha256": 1, "shard_sha256": 2, "sha256": "", "seconds": 0}',
        "digests",
    ),
    ("target-cache", "train-00000.npy", npz(), "an archive for an array"),
    (
        "target-cache",
        "train-00000.npy",
        b"\x93NUMPY\x01\x00\x08\x00{'a': (\n",
        "an array header that is no Python",
    ),
    ("model-folder", "student", b'{"format": "ssmke-student/1"}', "a config without a student"),
    ("model-folder", "student", b'{"format": "ssmke-student/1", "student": [1]}', "a list for a student"),
    ("model-folder", "student", DEEP, "JSON nested 20,000 deep"),
    ("model-folder", "transformers", b"[]", "a list for an architecture"),
    ("model-folder", "transformers", b'{"model_type": "bert", "hidden_size": "x"}', "text for a size"),
]


@pytest.mark.parametrize(
    ("name", "variant", "content", "what"), FINDINGS, ids=[f"{f[0]}: {f[3]}" for f in FINDINGS]
)
def test_what_was_found_stays_found(
    places: Place, name: str, variant: str, content: bytes, what: str
) -> None:
    target, folder, _ = places(name)
    examine(target, target.join(variant, content), folder)


def edited(places: Place, name: str, variant: str, edit: Callable[[dict], None]) -> bool:
    target, folder, seeds = places(name)
    value = json.loads(dict(seeds)[variant])
    edit(value)
    return examine(target, target.join(variant, json.dumps(value).encode()), folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("shared", "heads", 0),
        ("shared", "dim", "8"),
        ("image", "timm_kwargs", {"img_size": 0}),
        ("image", "timm_kwargs", {"depth": 10**9}),
        (
            "image",
            "timm_kwargs",
            {"img_size": 16, "patch_size": 8, "embed_dim": 1 << 24, "depth": 1, "num_heads": 1},
        ),
        ("image", "weights", "hub"),
        ("text", "weights", "/etc/passwd"),
        ("text", "max_tokens", None),
        ("text", "tokenizer", 5),
    ],
)
def test_a_hostile_config_of_a_model_is_refused_before_it_costs_memory(
    places: Place, part: str, key: str, value: object
) -> None:
    assert not edited(
        places, "model-folder", "student", lambda saved: saved["student"][part].update({key: value})
    )


def test_a_text_encoder_of_any_size_is_refused_too(places: Place) -> None:
    for change in ({"num_hidden_layers": 10**9}, {"hidden_size": 1 << 24}, {"vocab_size": 1 << 40}):
        assert not edited(
            places, "model-folder", "student",
            lambda saved, change=change: saved["student"]["text"]["architecture"].update(change),  # type: ignore[misc]
        )  # fmt: skip


def test_a_progressive_picture_of_endless_scans_is_refused_at_once(places: Place) -> None:
    out = io.BytesIO()
    Image.new("RGB", (1000, 1000), "red").save(out, "JPEG", progressive=True)
    plain = out.getvalue()
    scan = plain.rindex(b"\xff\xda")
    bomb = plain[:scan] + plain[scan:-2] * 1500 + plain[scan:]
    for read in (decode_image, EncodedImage):
        with pytest.raises(BadSample, match="scans"):
            read(bomb)
        read(plain)


def test_the_guard_sees_what_a_reader_must_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.2)

    def reader(does: Callable[[], object]) -> Target:
        return Target("x", ("x",), lambda f: None, lambda f: [], lambda v, c, f: does(), ())

    inside = tmp_path / "inside"
    inside.mkdir()
    assert examine(reader(lambda: (inside / "a").write_text("a")), b"", inside)
    for does in (
        lambda: (tmp_path / "outside").write_text("a"),
        lambda: (inside / "a").rename(tmp_path / "b"),
        lambda: (inside / "../c").mkdir(),
        lambda: __import__("subprocess").run(["true"]),
        lambda: __import__("pickle").loads(b"cos\ngetpid\n(tR."),
        lambda: sum(1 for _ in iter(int, 1)),
    ):
        with pytest.raises(Broken):
            examine(reader(does), b"", inside)
    with pytest.raises(MemoryError):
        examine(reader(lambda: bytearray(4 << 30)), b"", inside)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]
