"""What a user calls: names on the hub, encoding of whatever is a picture, similarity, the processor."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from ssmke.errors import DataError, WeightsError
from ssmke.models import pretrained
from ssmke.models.student import SSMKE

COMMIT = "a" * 40


def picture(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def test_a_file_an_image_an_array_and_a_crop_are_the_same_picture(model: SSMKE, tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    crop = model.processor()(images=image)["images"]
    assert crop.dtype == torch.uint8
    assert crop.shape == (1, 3, 32, 32)
    expected = model.encode_image(crop)
    for given in (image, [image], str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(image)):
        assert torch.equal(model.encode_image(given), expected)
    twice = model.processor()(images=np.stack([np.asarray(image)] * 2))["images"]
    assert torch.equal(twice, crop.expand(2, 3, 32, 32))


def test_modes_orientation_and_transparency_are_brought_to_upright_rgb(model: SSMKE, tmp_path: Path) -> None:
    prepare = model.processor()
    image = picture(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = prepare(images=image.transpose(Image.Transpose.ROTATE_270))["images"]
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(prepare(images=given)["images"], upright)

    grey = image.convert("L")
    assert torch.equal(prepare(images=grey)["images"], prepare(images=grey.convert("RGB"))["images"])
    assert torch.equal(prepare(images=np.asarray(grey))["images"], prepare(images=grey)["images"])
    palette = image.quantize(8)
    assert torch.equal(prepare(images=palette)["images"], prepare(images=palette.convert("RGB"))["images"])
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (prepare(images=clear)["images"] == 255).all()  # white, not the red that nobody sees


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((20, 20, 3), np.float32),
            r"picture 1: an array must be uint8 .* not float32 \[20, 20, 3\]",
        ),
        (np.zeros((3, 20, 20), np.uint8), r"not uint8 \[3, 20, 20\]"),
        (np.zeros((0, 20, 3), np.uint8), r"not uint8 \[0, 20, 3\]"),
        ("no such file.jpg", r"picture 1, no such file\.jpg: No such file"),
        (7, "picture 1: a picture is .* not int"),
        (Image.new("F", (20, 20)), "picture 1: unsupported mode"),
    ],
)
def test_what_is_no_picture_is_refused_by_number(model: SSMKE, given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.encode_image([picture(), given])  # type: ignore[list-item]


def test_a_file_that_is_no_image_is_named(model: SSMKE, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff and no more")
    with pytest.raises(DataError, match=r"picture 0, .*a\.jpg: truncated image"):
        model.encode_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32, 3), (1, 3, 31, 32)])
def test_tensors_of_other_shapes_and_types_are_refused(model: SSMKE, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \[B, 3, 32, 32\]"):
        model.encode_image(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(DataError, match="not float32"):
        model.encode_image(torch.zeros(1, 3, 32, 32))


def test_texts_in_batches_are_what_each_is_alone_and_in_order(model: SSMKE) -> None:
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "red", "runs", "on", "grass"]
    texts = [" ".join(rng.choice(words, rng.integers(0, 14))) for _ in range(150)]
    together = model.encode_text(texts, batch_size=1)  # 64 to a run: three runs, each sorted by length
    batched = model.encode_text(texts, batch_size=8)
    alone = torch.cat([model.encode_text(text) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    assert model.encode_text([]).shape == (0, model.dim)
    assert model.encode_image([]).shape == (0, model.dim)


def test_no_batch_of_a_long_list_is_larger_than_asked(model: SSMKE, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    embed = model._embed_ids

    def spy(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return embed(ids, mask)

    monkeypatch.setattr(model, "_embed_ids", spy)
    assert model.encode_text(["a dog"] * 1000, batch_size=100).shape == (1000, 32)
    assert sizes == [100] * 10


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["a dog", 3], "text 1 is of type int"), (torch.ones(1, 3).long(), "need their mask")],
)
def test_what_is_no_text_is_refused(model: SSMKE, texts: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.encode_text(texts)  # type: ignore[arg-type]


def test_similarity_is_the_cosine_of_pictures_and_texts_or_of_their_embeddings(model: SSMKE) -> None:
    pictures, texts = [picture(seed=1), picture(seed=2)], ["a dog", "a red cat", "two children"]
    image, text = model.encode_image(pictures).double().numpy(), model.encode_text(texts).double().numpy()
    lengths = np.linalg.norm(image, axis=1)[:, None] * np.linalg.norm(text, axis=1)
    found = model.similarity(pictures, texts)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.numpy(), image @ text.T / lengths, atol=1e-6)
    embedded = model.similarity(3 * model.encode_image(pictures), model.encode_text(texts))
    torch.testing.assert_close(embedded, found)


def test_the_processor_makes_what_the_model_takes(model: SSMKE) -> None:
    made = model.processor()([picture()], "a red dog runs on grass")
    outputs = model(**made)
    image = torch.nn.functional.normalize(outputs["image.output"], dim=-1)
    torch.testing.assert_close(image, model.encode_image(picture()))
    assert made["ids"].shape == made["mask"].shape == (1, 8)
    assert list(model.processor()(texts=["a dog"])) == ["ids", "mask"]


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: one repository, whatever lies in ``root``."""

    def __init__(self, root: Path, asked: list[str], *args: object) -> None:
        self.root, self.asked = root, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = [str(p.relative_to(self.root)) for p in sorted(self.root.rglob("*")) if p.is_file()]
        known, name = path.rpartition(f"/resolve/{COMMIT}/")[::2]
        if path.startswith("/api/models/us/model/tree/"):
            self._send(
                json.dumps(
                    [
                        {
                            "type": "file",
                            "path": f,
                            "size": (self.root / f).stat().st_size,
                            "oid": f"{i:040x}",
                        }
                        for i, f in enumerate(files)
                    ]
                ).encode()
            )
        elif path.startswith("/api/models/us/model"):
            if "/revision/" in path and path.rpartition("/")[2] not in ("main", COMMIT, "v1"):
                self._refuse("RevisionNotFound")
                return
            about = {"id": "us/model", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self._send(json.dumps(about).encode())
        elif known == "/us/model" and name in files:
            self._send((self.root / name).read_bytes(), f'"{files.index(name):040x}"')
        else:
            self._refuse("RepoNotFound")

    def _send(self, body: bytes, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """The folder that the repository us/model consists of, and what was asked for."""
    root, asked = tmp_path / "repository", []
    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, root, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    download = functools.partial(
        huggingface_hub.snapshot_download,
        endpoint=f"http://127.0.0.1:{server.server_port}",
        cache_dir=tmp_path / "cache",
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield root, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["us/model", "us/model@v1"])
def test_a_model_is_fetched_by_name_and_nothing_but_our_files(
    model: SSMKE, hub: tuple[Path, list[str]], name: str
) -> None:
    root, asked = hub
    model.save_pretrained(root)
    (root / "modeling_evil.py").write_text("raise SystemExit")
    (root / "pytorch_model.bin").write_bytes(b"no")
    (root / "README.md").write_text("# card")
    fetched = SSMKE.from_pretrained(name)
    assert torch.equal(fetched.encode_text(["a dog"]), model.encode_text(["a dog"]))
    files = {path.partition(f"/resolve/{COMMIT}/")[2] for path in asked if "/resolve/" in path}
    assert files == {
        "config.json", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    }  # fmt: skip


def test_what_the_hub_does_not_have_is_said_in_one_line(hub: tuple[Path, list[str]]) -> None:
    root, _ = hub
    (root / "config.json").write_text("{}")
    (root / "pytorch_model.bin").write_bytes(b"no")
    with pytest.raises(
        WeightsError, match=r"us/model on the hub is no ssmke model: it has no model\.safetensors"
    ):
        SSMKE.from_pretrained("us/model")
    with pytest.raises(WeightsError, match=r"us/other is neither a folder here nor a repository"):
        SSMKE.from_pretrained("us/other")
    with pytest.raises(WeightsError, match=r"us/model on the hub has no revision v9"):
        SSMKE.from_pretrained("us/model@v9")


def test_without_a_network_one_error_says_so(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"us/model is no folder here, and the hub cannot be reached"):
        SSMKE.from_pretrained("us/model")


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in (
        "runs/model",
        Path("us/model"),
        "../us/model",
        "us/model/",
        "model",
        str(tmp_path / "model"),
    ):
        if isinstance(source, str):
            assert pretrained.hub_name(source) is None
        with pytest.raises(WeightsError, match=r"no config\.json"):
            SSMKE.from_pretrained(source)
    assert pretrained.hub_name("us/model@refs/pr/1") == ("us/model", "refs/pr/1")
