"""What fake tensors are counted to save is what real ones save, storage by storage."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmke.data.packing import ROW
from ssmke.models.student import SSMKE
from ssmke.planning import activations
from ssmke.planning.activations import SIZES, Text, count
from ssmke.planning.live import LiveBytes
from ssmke.planning.student import model_of
from ssmke.recipes import named

TEXT = Text(tokens=10, longest=14, packed=True)


def student() -> SSMKE:
    recipe = named("scenes-tiny")
    recipe.model.image.weights = recipe.model.text.weights = "none"
    recipe.model.text.architecture = {
        "model_type": "bert",
        "vocab_size": 60,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    recipe.model.prediction_dim = 128
    return SSMKE(recipe.model, quiet=True)


def saved_bytes(model: SSMKE, pairs: int) -> int:
    """Distinct storages that a real forward pass saves, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    found: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    rows = -(-round(pairs * TEXT.tokens / activations.FILLING) // ROW)
    places = torch.full((rows, ROW), -1)
    places.view(-1)[: pairs * 10] = (torch.arange(pairs)[:, None] * 14 + torch.arange(10)).flatten()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(
            torch.zeros(pairs, 3, model.image_size, model.image_size, dtype=torch.uint8),
            torch.ones(pairs, 14, dtype=torch.int64),
            torch.ones(pairs, 14, dtype=torch.bool),
            places,
        )
    # Outputs are alive too, whether or not they are saved.
    for value in out.values():
        pack(value)
    return sum(size for _, size in found.values())


def test_saved_bytes_of_a_real_forward_pass_are_those_of_the_fake_one() -> None:
    model = student()
    sizes = SIZES[1:]  # two captions fill a packed row by a third: only larger batches lie on the line
    real = [saved_bytes(model, pairs) for pairs in sizes]
    mode = FakeTensorMode()
    activations.fake(model, mode, torch.float32)
    kept = count(model, TEXT, dtype=torch.float32, cuda=False, mode=mode).kept
    for pairs, size in zip(sizes, real, strict=True):
        # Beside what autograd saved, the caller holds inputs: pixels, ids, mask, packing.
        inputs = pairs * (3 * model.image_size**2 + 14 * 9) + 8 * ROW * -(-round(pairs * 10 / 0.97) // ROW)
        assert abs(kept.at(pairs) - size) <= inputs


def test_other_batches_are_predicted_from_the_counted_ones() -> None:
    model, mode = student(), FakeTensorMode()
    activations.fake(model, mode, torch.float32)
    found = count(model, TEXT, dtype=torch.float32, cuda=True, mode=mode)

    def counted(pairs: int) -> tuple[int, int, int, int]:
        return activations._run(
            model, TEXT, pairs, dtype=torch.float32, cuda=True, mode=mode, cached_tokens=None
        )

    for pairs in (128, 200):
        kept, _, peak, _ = counted(pairs)
        # Packed rows are whole rows: half a row's worth of places at most.
        assert abs(found.kept.at(pairs) / kept - 1) < 0.005
        assert abs(found.backward.at(pairs) / peak - 1) < 0.005
    for pairs in (4, 8, 16):
        assert -0.02 < found.backward.at(pairs) / counted(pairs)[2] - 1 < 0.15


def test_attention_of_a_gpu_keeps_no_weights() -> None:
    model, mode = student(), FakeTensorMode()
    activations.fake(model, mode, torch.bfloat16)
    fused = count(model, TEXT, dtype=torch.bfloat16, cuda=True, mode=mode)
    dim, tokens, blocks = 128, 17, 3
    at_least = blocks * tokens * 2 * (3 * dim + dim + 4 * dim * 2)  # qkv, output, both sides of GELU
    assert at_least < fused.kept.per_pair
    with mode, activations._attention(True), LiveBytes() as live:
        shape = (4, 2, 256, 32)
        query = torch.empty(shape, requires_grad=True)
        key, value = torch.empty(shape), torch.empty(shape)
        before = live.live
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        assert live.live - before == out.numel() * 4 + 4 * 2 * 256 * 4


def test_checkpointing_keeps_less_and_trains_the_same_parameters() -> None:
    plain, sparing = named("ssmke-base"), named("ssmke-base")
    sparing.compute.checkpointing = True
    one, two = (model_of(r, dtype="bf16", cuda=True, text_tokens=13.0) for r in (plain, sparing))
    assert one.parameters == two.parameters
    assert one.parameters.trained == 117_224_163
    # 12 half-encoder blocks keep their input of 197 or 13 tokens instead of some 15 times as much.
    assert two.activations.kept.per_pair < one.activations.kept.per_pair / 6
    assert two.activations.backward.at(256) < one.activations.backward.at(256) / 3


def test_live_bytes_follow_real_storages() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[:10]
        assert live.live == 4000
        del first
        assert live.live == 4000
        del view
        assert live.live == 0
        torch.empty(10, device="meta")
    assert live.peak == 4000
