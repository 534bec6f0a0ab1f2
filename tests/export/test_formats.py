"""Exports against the model that they were made of, with the real libraries."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer

from ssmke.errors import ConfigError, WeightsError
from ssmke.export import onnx as onnx_export
from ssmke.export.card import Form, model_card
from ssmke.export.weights import export_weights
from ssmke.models.student import SSMKE

TEXTS = ["a dog", "two children sits on grass near a red cat", ""]


def photo(seed: int = 0, side: int = 50) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, 40))


@pytest.mark.parametrize(
    ("precision", "bytes_each", "tolerance"), [("fp32", 4, 0), ("fp16", 2, 5e-3), ("bf16", 2, 5e-2)]
)
def test_a_shared_folder_has_the_precision_and_gives_the_embeddings(
    model: SSMKE, tmp_path: Path, precision: str, bytes_each: int, tolerance: float
) -> None:
    out = tmp_path / "out"
    found = export_weights(model, out, precision, "# card\n")  # type: ignore[arg-type]
    assert found <= tolerance
    assert (found == 0) == (precision == "fp32")
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == [
        "README.md", "config.json", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ]  # fmt: skip
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).element_size() for key in file.keys()} == {bytes_each}  # noqa: SIM118
    loaded = SSMKE.from_pretrained(out)
    card = (out / "README.md").read_text()
    if precision == "fp32":
        assert card == "# card\n"
    else:
        assert f"stored in {precision}" in card
        assert f"by at most {found:.2g}. The results above are those of the fp32 model" in card
    difference = loaded.encode_text(TEXTS) - model.encode_text(TEXTS)
    assert float(difference.abs().max()) <= tolerance


def test_weights_that_a_precision_cannot_hold_are_refused_and_nothing_is_left(
    model: SSMKE, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.shared.proj.weight[0, 0] = 1e6  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match=r"shared\.proj\.weight .* fp16 .* --precision"):
        export_weights(model, tmp_path / "out", "fp16", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_over(model: SSMKE, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .* not empty"):
        export_weights(model, tmp_path, "fp32", "")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_current_folder_takes_an_export_if_it_is_empty(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_weights(model, Path(), "fp32", "# card\n")
    assert Path("README.md").read_text() == "# card\n"
    assert torch.equal(SSMKE.from_pretrained(".").encode_text(TEXTS), model.encode_text(TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    with pytest.raises(ConfigError, match=r"--out \. is there already and not empty"):
        export_weights(model, Path(), "fp32", "")


def used(form: Form, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:  # type: ignore[type-arg]
    """Cosines that the card's own lines give for kite.jpg in ``folder``, run there."""
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", model_card(None, None, "x", form), re.DOTALL)
    names: dict[str, object] = {}
    exec(code[0].replace("this folder, or its name on the hub", str(folder)), names)
    images, texts = (np.asarray(names[name]) for name in ("images", "texts"))
    return images @ texts.T


@pytest.fixture(scope="module")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "out"
    found = onnx_export.export_onnx(SSMKE.from_pretrained(model_dir), out, "# card\n")
    assert {d.file for d in found} == {"image.onnx", "text.onnx"}
    assert all(d.largest < 1e-5 for d in found)
    return out


def test_onnx_files_give_our_embeddings_from_pictures_and_sentences(exported: Path, model: SSMKE) -> None:
    """As a program without ssmke uses them: with preprocessing.json and the folder of the tokenizer."""
    facts = json.loads((exported / "preprocessing.json").read_text())
    image, text = (
        onnxruntime.InferenceSession(str(exported / name), providers=["CPUExecutionProvider"])
        for name in ("image.onnx", "text.onnx")
    )
    tokenizer = AutoTokenizer.from_pretrained(exported / "tokenizer")
    for count in (1, 2, 7):  # the graph was traced with 2
        pictures = [photo(seed) for seed in range(count)]
        ours = image.run(None, {"images": model.processor()(images=pictures)["images"].numpy()})[0]
        np.testing.assert_allclose(ours, model.encode_image(pictures).numpy(), atol=1e-5)
        texts = [TEXTS[i % 3] for i in range(count)]
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=facts["text"]["max_tokens"], return_tensors="np"
        )
        given = {name: tokens[name].astype(np.int64) for name in facts["text"]["input"]}
        np.testing.assert_allclose(text.run(None, given)[0], model.encode_text(texts).numpy(), atol=1e-5)
    assert facts["image"]["resize"]["side"] == model.image_size
    assert facts["embedding"]["dim"] == model.dim


def test_the_lines_of_the_onnx_card_run_and_give_our_cosines(
    exported: Path, model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    shutil.copytree(exported, folder)
    photo(side=64).save(folder / "kite.jpg")
    found = used("onnx", folder, monkeypatch)
    ours = model.similarity(
        model.encode_image([folder / "kite.jpg"]),
        model.encode_text(["a kite high in the air", "a pizza on a plate"]),
    )
    # Pillow's filter and torch's differ by a grey level or two.
    np.testing.assert_allclose(found, ours.numpy(), atol=0.02)


def test_onnx_files_that_compute_something_else_are_not_kept(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = torch.onnx.export

    def other(module: torch.nn.Module, **options: object) -> object:
        if "images" not in options["kwargs"]:  # type: ignore[operator]
            module = type(module)(SSMKE.from_pretrained(altered))  # type: ignore[call-arg]
        return export(module, **options)  # type: ignore[arg-type]

    altered = tmp_path / "altered"
    state = {name: tensor * 1.01 for name, tensor in model.state_dict().items()}
    model.save_pretrained(altered, state)
    monkeypatch.setattr(torch.onnx, "export", other)
    with pytest.raises(WeightsError, match=r"text\.onnx differs from torch .* nothing was kept"):
        onnx_export.export_onnx(model, tmp_path / "out", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["altered"]


def test_a_missing_extra_is_named(model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "NEEDS", ("onnx", "no_such_module"))
    with pytest.raises(ConfigError, match=r"needs no_such_module: pip install 'ssmke\[onnx\]'"):
        onnx_export.export_onnx(model, tmp_path / "out", "")


def test_sentence_transformers_loads_the_folder_and_gives_our_embeddings(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    from ssmke.export.sentence_transformers import export_sentence_transformers, load

    assert export_sentence_transformers(model, tmp_path / "out", "# card\n") < 1e-6
    photo().save(tmp_path / "a.png")
    for loaded in (
        SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True, device="cpu"),
        load(tmp_path / "out").to("cpu"),
    ):
        np.testing.assert_allclose(loaded.encode(TEXTS), model.encode_text(TEXTS).numpy(), atol=1e-5)
        image = model.encode_image([photo()]).numpy()
        for given in (photo(), str(tmp_path / "a.png"), np.asarray(photo()), {"image": photo()}):
            np.testing.assert_allclose(loaded.encode([given]), image, atol=1e-6)
        assert loaded.get_embedding_dimension() == model.dim
        assert loaded.max_seq_length == 16
    photo().save(tmp_path / "out" / "kite.jpg")
    ours = model.similarity(
        model.encode_image([tmp_path / "out" / "kite.jpg"]),
        model.encode_text(["a kite high in the air", "a pizza on a plate"]),
    )
    found = used("sentence-transformers", tmp_path / "out", monkeypatch)
    np.testing.assert_allclose(found, ours.numpy(), atol=1e-5)
    prompted = loaded.encode(["dog"], prompt="a ")
    np.testing.assert_allclose(prompted, model.encode_text(["a dog"]).numpy(), atol=1e-6)
    loaded.save(str(tmp_path / "again"))
    again = SSMKE.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
