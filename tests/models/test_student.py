"""The student: shared encoders against references, published sizes, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shared import SharedBlock, SharedConfig, SharedMLP
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.text_encoders import TextEncoderConfig


@pytest.mark.parametrize("masked", [False, True])
def test_the_cls_only_block_equals_the_full_block_of_timm(masked: bool) -> None:
    torch.manual_seed(0)
    ours = SharedBlock(SharedConfig(dim=48, heads=4)).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    full = Block(48, 4, qkv_bias=True, init_values=0.2).double()
    state = {
        "norm1": ours.norm1, "attn.proj": ours.proj, "norm2": ours.norm2, "mlp.fc1": ours.fc1, "mlp.fc2": ours.fc2,
    }  # fmt: skip
    weights = {f"{name}.{k}": v for name, part in state.items() for k, v in part.state_dict().items()}
    weights |= {
        "attn.qkv.weight": torch.cat([ours.q.weight, ours.kv.weight]),
        "attn.qkv.bias": torch.cat([ours.q.bias, ours.kv.bias]),
        "ls1.gamma": ours.scale1.gamma,
        "ls2.gamma": ours.scale2.gamma,
    }
    full.load_state_dict(weights)
    full.norm1.eps = full.norm2.eps = 1e-6
    tokens = torch.randn(3, 7, 48, dtype=torch.float64)
    lengths = torch.tensor([7, 4, 2]) if masked else torch.tensor([7, 7, 7])
    mask = torch.arange(7) < lengths[:, None]
    levels = ours(tokens, mask if masked else None)
    for row, length in enumerate(lengths):
        # Without padding, the reference needs no mask.
        torch.testing.assert_close(levels["output"][row], full(tokens[row : row + 1, :length])[0, 0])
    hidden = F.gelu(levels["hidden"]) @ ours.fc2.weight.T + ours.fc2.bias
    rest = levels["output"] - ours.scale2(hidden)
    torch.testing.assert_close(levels["hidden"], ours.fc1(ours.norm2(rest)))


def test_the_mlp_offers_its_three_layers() -> None:
    mlp = SharedMLP(SharedConfig(kind="mlp", dim=12, heads=4))
    tokens = torch.randn(2, 5, 12)
    levels = mlp(tokens)
    assert torch.equal(levels["input"], tokens[:, 0])
    torch.testing.assert_close(levels["output"], mlp.fc2(F.gelu(levels["hidden"])))


@pytest.fixture(scope="module")
def base() -> SSMKE:
    config = StudentConfig(
        image=ImageEncoderConfig(weights="none"), text=TextEncoderConfig(weights="none"), prediction_dim=768
    )
    return SSMKE(config, quiet=True)


def test_the_base_student_has_the_published_size_part_by_part(base: SSMKE) -> None:
    table = base.parameter_table()
    assert table["image_encoder"] == pytest.approx(43.2e6, abs=0.05e6)
    assert table["text_encoder"] == pytest.approx(66.4e6, abs=0.05e6)
    assert table["shared"] == pytest.approx(7.1e6, abs=0.05e6)
    assert table["prediction"] == pytest.approx(0.6e6, abs=0.05e6)
    assert table["modality"] == 2304
    assert table["total"] == pytest.approx(117.2e6, abs=0.05e6)


def test_the_transformer_shre_has_the_published_size() -> None:
    config = StudentConfig(
        image=ImageEncoderConfig(name="data2vec2_base", weights="none"),
        text=TextEncoderConfig(weights="none"),
        shared=SharedConfig(kind="mlp"),
        modality_embedding=False,
    )
    assert SSMKE(config, quiet=True).parameter_table()["total"] == pytest.approx(114.2e6, abs=0.1e6)


def test_saving_and_loading_keeps_embeddings_and_needs_no_network(model: SSMKE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "copy")
    copy = SSMKE.from_pretrained(tmp_path / "copy")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.encode_image(images), copy.encode_image(images))
    captions = ["a red dog", "two cats"]
    assert torch.equal(model.encode_text(captions), copy.encode_text(captions))
    assert model.encode_text(captions).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_saving_replaces_a_model_and_nothing_else(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"format": "other/1"}')
    (tmp_path / "file").write_text("mine")
    for target in (mine, tmp_path / "file", tmp_path):
        with pytest.raises(
            WeightsError, match="is no ssmke model folder: it would be lost; choose a new folder"
        ):
            model.save_pretrained(target)
    assert (mine / "config.json").read_text() == '{"format": "other/1"}'
    run = tmp_path / "run"
    model.save_pretrained(run / "model")
    state = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(run / "model", state)
    assert torch.equal(SSMKE.from_pretrained(run / "model").shared.proj.weight, state["shared.proj.weight"])  # type: ignore[union-attr]
    # Refused by the disk at the last step, the old one is back.
    replace = Path.replace
    monkeypatch.setattr(
        Path,
        "replace",
        lambda path, to: replace(path, to if ".partial" not in path.name else run / "no" / "x"),
    )
    with pytest.raises(WeightsError, match="cannot be written"):
        model.save_pretrained(run / "model")
    monkeypatch.undo()
    assert torch.equal(SSMKE.from_pretrained(run / "model").shared.proj.weight, state["shared.proj.weight"])  # type: ignore[union-attr]
    # As a kill between the two renames leaves it.
    (run / "model").replace(run / ".model.replaced")
    model.save_pretrained(run / "model")
    assert [path.name for path in run.iterdir()] == ["model"]


def test_a_model_is_saved_to_the_current_folder_which_stays(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for factor in (1, 2):
        state = {name: tensor * factor for name, tensor in model.state_dict().items()}
        model.save_pretrained(".", state)
        assert Path("config.json").is_file()
        assert torch.equal(SSMKE.from_pretrained(".").shared.proj.weight, state["shared.proj.weight"])  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_padding_does_not_change_an_embedding(model: SSMKE) -> None:
    alone = model.encode_text(["a dog"])
    together = model.encode_text(["a dog", "two children sits on grass near a red cat"])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: (d / "config.json").write_text('{"format": "other/2"}'), "not of format"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x00" * 20), "cannot be read"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_model_folder_is_named(damage: object, message: str, model: SSMKE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=message) as error:
        SSMKE.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_heads_that_do_not_divide_the_width_are_refused_by_flag() -> None:
    with pytest.raises(ConfigError, match=r"--model\.shared\.heads"):
        SharedConfig(dim=100, heads=12)


def test_cached_tokens_give_what_the_pixels_give(model: SSMKE) -> None:
    from ssmke.targets.frozen import FrozenTokens

    model.image_encoder.requires_grad_(False)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens = FrozenTokens(model)(images)
    assert tokens.shape == (3, 17 * 32)
    torch.testing.assert_close(model(images=tokens)["image.output"], model(images=images)["image.output"])
