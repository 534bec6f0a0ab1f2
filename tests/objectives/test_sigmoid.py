"""The sigmoid contrast against the published formula in float64 and open_clip; its memory; its bias in training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from torch import Tensor, nn

from ssmke.data.batch import Batch
from ssmke.errors import ConfigError
from ssmke.models.shapes import shapes_of
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.objectives.contrast import normalise, sigmoid_image_text_contrast
from ssmke.objectives.cross_entropy import loss_bytes
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.objectives.sigmoid import pairwise_sigmoid
from ssmke.planning.student import losses_of
from ssmke.training.optimizer import OptimConfig, build_optimizer, parameter_groups
from tests.objectives.allocations import peak_bytes
from tests.objectives.test_cross_entropy import (
    DOUBLE,
    SINGLE,
    Largest,
    agree,
    draw,
    products,
    with_gradients,
)

TARGET = 12


def one_by_one(
    image: np.ndarray, text: np.ndarray, scale: float, bias: float, ids: list[int] | None
) -> float:
    """Eq. 1, one pair at a time, in float64."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    total = 0.0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            if i == j or ids is None or ids[i] != ids[j]:
                z = 1 if i == j else -1
                total -= math.log(1 / (1 + math.exp(-z * (scale * float(x @ y) + bias))))
    return total / len(image)


def plain(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    labels: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
) -> Tensor:
    """All logits at once and autograd's derivative; rows and columns of any length."""
    logits = scale * (F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).T) + bias
    own = F.one_hot(labels, len(columns)).bool()
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    if row_ids is not None and column_ids is not None:
        losses = losses * ((row_ids[:, None] != column_ids[None, :]) | own)
    return losses.sum() / len(rows)


def scalars(scale: float, bias: float) -> list[Tensor]:
    return [torch.tensor([scale]).double(), torch.tensor([bias]).double()]


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 9), dim=st.integers(1, 7), images=st.one_of(st.none(), st.integers(1, 5)),
    scale=st.floats(1.0, 100.0), bias=st.floats(-20.0, 5.0), max_logits=st.integers(1, 150),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_equals_the_published_formula_one_pair_at_a_time(
    count: int, dim: int, images: int | None, scale: float, bias: float, max_logits: int, seed: int
) -> None:
    image, text = draw(seed, (count, dim), (count, dim))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, images or 1, (count,), generator=generator)
    found = sigmoid_image_text_contrast(
        image, text, *scalars(scale, bias), ids, mask=images is not None, max_logits=max_logits
    )
    expected = one_by_one(image.numpy(), text.numpy(), scale, bias, ids.tolist() if images else None)
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-6)  # scale is a rounded tensor


@pytest.mark.parametrize("max_logits", [1, 200, 1 << 20])
def test_equals_open_clip_in_value_and_gradient(max_logits: int) -> None:
    image, text = (x.float() for x in draw(0, (32, 48), (32, 48)))
    leaves = [image, text, torch.tensor([10.0]), torch.tensor([-10.0])]

    def theirs(i: Tensor, t: Tensor, s: Tensor, b: Tensor) -> Tensor:
        value: Tensor = SigLipLoss()(normalise(i), normalise(t), s, b)
        return value

    def ours(*x: Tensor) -> Tensor:
        return sigmoid_image_text_contrast(*x, torch.arange(32), max_logits=max_logits)

    for mine, other in zip(with_gradients(ours, leaves), with_gradients(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 13), others=st.integers(0, 9), dim=st.integers(1, 9),
    images=st.one_of(st.none(), st.integers(1, 6)), scale=st.floats(0.5, 100.0), bias=st.floats(-30.0, 30.0),
    max_logits=st.integers(1, 500), single=st.booleans(), inside=st.booleans(), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_rows_columns_scale_and_bias_get_the_plain_gradients(
    count: int, others: int, dim: int, images: int | None, scale: float, bias: float, max_logits: int, single: bool,
    inside: bool, seed: int,
) -> None:  # fmt: skip
    rows, columns = draw(seed, (count, dim), (count + others, dim))
    generator = torch.Generator().manual_seed(seed)
    column_ids = torch.randint(0, images or 1, (count + others,), generator=generator)
    labels = torch.randperm(count + others, generator=generator)[:count]
    ids = None if images is None else column_ids[labels]
    leaves = [rows, columns, *scalars(scale, bias)]

    def ours(r: Tensor, c: Tensor, s: Tensor, b: Tensor) -> Tensor:
        c = c if inside else F.normalize(c, dim=-1)
        return pairwise_sigmoid(r, c, s, b, labels, ids, column_ids, max_logits, normalise_columns=inside)

    expected = with_gradients(plain, leaves, labels, ids, column_ids)
    leaves = [x.float() for x in leaves] if single else leaves
    found = with_gradients(ours, leaves)
    assert all(x.dtype == (torch.float32 if single else torch.float64) for x in found)
    agree(found, expected, SINGLE if single else DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(ours(*leaves), found[0])


@pytest.mark.parametrize("max_logits", [1, 24, 1 << 20])
def test_gradcheck(max_logits: int) -> None:
    rows, columns = (x.requires_grad_() for x in draw(2, (5, 3), (7, 3)))
    leaves = [rows, columns, *(x.requires_grad_() for x in scalars(3.0, -1.0))]
    ids = torch.tensor([0, 1, 0, 2, 1, 3, 4])

    def loss(*x: Tensor) -> Tensor:
        return pairwise_sigmoid(*x, torch.arange(5), ids[:5], ids, max_logits, normalise_columns=True)

    assert torch.autograd.gradcheck(loss, leaves)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    image, text = draw(2, (5, 3), (5, 3))
    every = [image, text, *scalars(3.0, -1.0)]
    labels = torch.arange(5)
    expected = with_gradients(plain, every, labels, None, None)[1:]
    for asked in range(4):
        leaves = [x.detach().requires_grad_(number == asked) for number, x in enumerate(every)]
        sigmoid_image_text_contrast(*leaves, labels).backward()
        for number, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (number == asked)
        torch.testing.assert_close(leaves[asked].grad, expected[asked])


@pytest.mark.parametrize(("scale", "bias"), [(100.0, 0.0), (100.0, -60.0), (1.0, 80.0), (1.0, -80.0)])
def test_sure_pairs_keep_their_small_losses_in_fp32(scale: float, bias: float) -> None:
    # Every cosine is 1 or 0.5: right and wrong pairs at both ends of the sigmoid, from e^-80 to 80.
    rows = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    leaves = [rows, rows.clone(), torch.tensor([scale]), torch.tensor([bias])]
    exact = with_gradients(plain, [x.double() for x in leaves], torch.arange(2), None, None)
    found = with_gradients(sigmoid_image_text_contrast, leaves, torch.arange(2))
    for mine, correct in zip(found[:1] + found[3:], exact[:1] + exact[3:], strict=True):
        torch.testing.assert_close(mine.double(), correct, rtol=1e-4, atol=1e-40)


def test_other_captions_of_an_image_say_neither_yes_nor_no() -> None:
    # Three captions of one image, all alike: what is left are the three matches.
    same, ids, numbers = torch.ones(3, 4), torch.tensor([7, 7, 7]), scalars(10.0, -4.0)
    right = -math.log(1 / (1 + math.exp(-6)))
    assert float(sigmoid_image_text_contrast(same, same, *numbers, ids)) == pytest.approx(right, rel=1e-4)
    unmasked = sigmoid_image_text_contrast(same, same, *numbers, ids, mask=False)
    assert float(unmasked) == pytest.approx(right + 2 * (right + 6), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_logits", [1, 1 << 20])
def test_what_is_not_finite_shows_in_the_loss_and_in_every_gradient_as_in_the_plain_one(
    bad: float, max_logits: int
) -> None:
    image, text = draw(3, (6, 4), (6, 4))
    image[2, 1] = bad
    leaves, labels = [image, text, *scalars(10.0, -10.0)], torch.arange(6)
    expected = with_gradients(plain, leaves, labels, None, None)
    found = with_gradients(lambda *x: sigmoid_image_text_contrast(*x, labels, max_logits=max_logits), leaves)
    assert torch.isnan(found[0])
    for mine, plainly in zip(found, expected, strict=True):
        assert torch.equal(mine.isfinite(), plainly.isfinite())


@pytest.mark.parametrize("length", [0.0, 1e-13])
def test_an_all_but_empty_embedding_gets_the_gradient_of_f_normalize(length: float) -> None:
    image, text = draw(4, (4, 5), (4, 5))
    image[1] *= length
    text[2] *= length
    leaves, labels = [image, text, *scalars(2.0, -1.0)], torch.arange(4)
    found = with_gradients(sigmoid_image_text_contrast, leaves, labels)
    for mine, exact in zip(found, with_gradients(plain, leaves, labels, None, None), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-12)


def test_autocast_and_half_inputs_change_no_arithmetic() -> None:
    image, text = (x.bfloat16() for x in draw(7, (48, 32), (48, 32)))
    numbers, ids = [torch.tensor([100.0]), torch.tensor([-10.0])], torch.arange(48)
    exact = with_gradients(sigmoid_image_text_contrast, [image.float(), text.float(), *numbers], ids)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(sigmoid_image_text_contrast, [image, text, *numbers], ids)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], exact[0], rtol=1e-6, atol=0)
    assert found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[1], exact[1].bfloat16())
    torch.testing.assert_close(found[3:], exact[3:], rtol=1e-6, atol=0)


def test_backward_scales_by_what_comes_in_as_often_as_asked_and_has_no_second_derivative() -> None:
    image, text = (x.requires_grad_() for x in draw(8, (6, 4), (6, 4)))
    loss = sigmoid_image_text_contrast(image, text, *scalars(9.0, -3.0), torch.arange(6))
    [once] = torch.autograd.grad(loss, [image], retain_graph=True)
    [thrice] = torch.autograd.grad(3 * loss, [image], retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    [again] = torch.autograd.grad(loss, [image], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        again.sum().backward()


def a_step(count: int, dim: int, max_logits: int) -> Callable[[], object]:
    """Forward and backward."""
    image, text = (x.float().requires_grad_() for x in draw(1, (count, dim), (count, dim)))
    leaves = [image, text, *(x.float().requires_grad_() for x in scalars(10.0, -10.0))]
    ids = torch.arange(count)
    return lambda: sigmoid_image_text_contrast(*leaves, ids, max_logits=max_logits).backward(inputs=leaves)


def test_three_products_in_blocks_or_not_and_one_without_gradients() -> None:
    assert products(a_step(32, 8, 1 << 20), 32, 32, 8) == 3
    assert products(a_step(32, 8, 300), 32, 32, 8) == 3
    with torch.no_grad():
        image, text = draw(1, (32, 8), (32, 8))
        arguments = (image, text, *scalars(9.0, -9.0), torch.arange(32))
        assert products(lambda: sigmoid_image_text_contrast(*arguments, max_logits=300), 32, 32, 8) == 1


def test_no_tensor_is_larger_than_max_logits() -> None:
    with Largest() as ours:
        a_step(256, 6, 9000)()
    with Largest() as all_logits:
        a_step(256, 6, 1 << 30)()
    assert ours.numel <= 9000
    assert all_logits.numel >= 256 * 256


@pytest.mark.parametrize(
    ("count", "dim", "max_logits"), [(1024, 256, 1 << 16), (1024, 64, 1 << 18), (512, 768, 1 << 25)]
)
def test_the_accounted_memory_is_never_less_than_the_measured_one(
    count: int, dim: int, max_logits: int
) -> None:
    measured = peak_bytes(a_step(count, dim, max_logits))
    accounted = loss_bytes(count, count, dim, column_gradient=True, max_logits=max_logits, on_cpu=True)
    assert 0.75 * accounted <= measured <= accounted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("max_logits", [1 << 14, 1 << 25])
def test_on_cuda_the_same_values_within_the_accounted_memory(max_logits: int) -> None:
    count, dim = 512, 256
    leaves = [*draw(1, (count, dim), (count, dim)), *scalars(10.0, -10.0)]
    ids = torch.arange(count) // 2
    there = [x.float().cuda() for x in leaves]
    ids_there = ids.cuda()

    def ours(*x: Tensor) -> Tensor:
        return sigmoid_image_text_contrast(*x, ids_there, max_logits=max_logits)

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with_gradients(ours, there)  # the library's workspace is there from here on
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = with_gradients(ours, there)
        peak = torch.cuda.max_memory_allocated() - before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert peak <= loss_bytes(count, count, dim, column_gradient=True, max_logits=max_logits) + 2**20
    expected = with_gradients(plain, leaves, torch.arange(count), ids, ids)
    agree([x.cpu() for x in found], expected, SINGLE)


@pytest.fixture
def module(model: SSMKE) -> SSMKEPretraining:
    student = SSMKE(StudentConfig(**{**vars(model.config), "prediction_dim": TARGET}), quiet=True)
    return SSMKEPretraining(student, LossConfig(pairing="sigmoid", bank_size=4))


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
        ids=torch.randint(5, 18, (6, 9), generator=generator),
        mask=torch.ones(6, 9, dtype=torch.bool),
        image_ids=torch.tensor([0, 1, 2, 0, 3, 4]),
        targets=torch.randn(6, TARGET, generator=generator),
    )


def test_training_begins_with_the_published_values_and_logs_scales_and_biases(
    module: SSMKEPretraining,
) -> None:
    losses = module(a_batch())
    for level in module.levels:
        assert float(losses[f"scale.{level}"]) == pytest.approx(10)
        assert float(losses[f"bias.{level}"]) == -10
    # The distillation stays a softmax with its own temperature.
    assert float(losses["scale.distillation"]) == pytest.approx(1 / 0.07)
    assert "bias.distillation" not in losses
    outputs = module.student(*(getattr(a_batch(), name) for name in ("images", "ids", "mask")))
    expected = [
        one_by_one(
            *(outputs[f"{kind}.{level}"].detach().double().numpy() for kind in ("image", "text")),
            10.0,
            -10.0,
            [0, 1, 2, 0, 3, 4],
        )
        for level in module.levels
    ]
    assert losses["contrast"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((losses["contrast"] + losses["distillation"]).item())


def test_only_the_sigmoid_has_biases(model: SSMKE, module: SSMKEPretraining) -> None:
    softmax = SSMKEPretraining(model, LossConfig(distillation="none", bank="none"))
    own = {name for name, _ in module.named_parameters() if "." not in name}
    assert {name for name in own if name.startswith("bias_")} == {f"bias_{level}" for level in module.levels}
    assert all(getattr(module, name).shape == (1,) for name in own)
    assert not any(name.startswith("bias_") for name, _ in softmax.named_parameters())
    assert LossConfig().pairing == "softmax"


def test_biases_are_neither_decayed_nor_clamped_and_learn_as_fast_as_new_parts(
    module: SSMKEPretraining,
) -> None:
    config = OptimConfig(lr=1.0, encoder_lr=1e-5, weight_decay=0.5)
    groups = parameter_groups(module, config)
    biases = {id(getattr(module, f"bias_{level}")) for level in module.levels}
    held = [group for group in groups if biases & {id(p) for p in group["params"]}]
    assert [(group["weight_decay"], group["peak_lr"]) for group in held] == [(0.0, 1.0)]
    optimizer = build_optimizer(groups, config, cuda=False, offload=False)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
    for level in module.levels:
        assert getattr(module, f"bias_{level}").item() == pytest.approx(-3, rel=1e-4)


def test_the_bias_learns_how_rare_a_match_is() -> None:
    # Embeddings without information: the best that is left is the rate of matches, 1 of 64.
    image, text, bias = torch.zeros(64, 4), torch.zeros(64, 4), nn.Parameter(torch.tensor([-10.0]))
    optimizer = torch.optim.Adam([bias], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        sigmoid_image_text_contrast(image, text, torch.tensor([10.0]), bias, torch.arange(64)).backward()
        optimizer.step()
    assert torch.sigmoid(bias).item() == pytest.approx(1 / 64, rel=0.02)


def test_plans_and_costs_count_it_like_the_softmax(model: SSMKE, module: SSMKEPretraining) -> None:
    softmax = SSMKEPretraining(module.student, LossConfig(bank_size=4))
    counted = [
        shapes_of(part, None, distillation=True, online_teacher=False, max_tokens=16, batch_size=64)
        for part in (module, softmax)
    ]
    assert counted[0] == counted[1]
    assert losses_of(module.student, module.config) == losses_of(module.student, softmax.config)


@pytest.mark.parametrize("value", ["siglip", "Sigmoid", ""])
def test_an_unknown_pairing_is_refused_by_flag(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--loss\.pairing .*softmax, sigmoid"):
        LossConfig(pairing=value)  # type: ignore[arg-type]
