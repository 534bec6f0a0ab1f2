"""The fused cross-entropy against the plain formula in float64: values, gradients, memory, and a training curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssmke.objectives.bank import TargetBank
from ssmke.objectives.contrast import image_text_contrast, normalise
from ssmke.objectives.cross_entropy import cosine_cross_entropy, loss_bytes, symmetric_cross_entropy
from ssmke.objectives.distillation import contrastive_distillation
from tests.objectives.allocations import peak_bytes


def plain(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    labels: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor,
) -> Tensor:
    """The formula with all logits at once and autograd's derivative."""
    logits = scale * (rows @ columns.T)
    if row_ids is not None:
        own = F.one_hot(labels, columns.shape[0]).bool()
        logits = logits.masked_fill((row_ids[:, None] == column_ids[None, :]) & ~own, float("-inf"))
    return F.cross_entropy(logits, labels)


def plain_contrast(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor | None) -> Tensor:
    image, text, labels = F.normalize(image, dim=-1), F.normalize(text, dim=-1), torch.arange(len(image))
    columns = labels if ids is None else ids
    first = plain(image, text, scale, labels, ids, columns)
    return (first + plain(text, image, scale, labels, ids, columns)) / 2


def plain_distillation(
    image: Tensor, text: Tensor, targets: Tensor, scale: Tensor, ids: Tensor, bank: tuple[Tensor, Tensor]
) -> Tensor:
    columns = torch.cat([F.normalize(targets, dim=-1), bank[0].to(targets)])
    column_ids, labels = torch.cat([ids, bank[1]]), torch.arange(len(image))
    directions = [
        plain(F.normalize(x, dim=-1), columns, scale, labels, ids, column_ids) for x in (image, text)
    ]
    return (directions[0] + directions[1]) / 2


def draw(seed: int, *shapes: tuple[int, ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def with_gradients(loss: Callable[..., Tensor], leaves: list[Tensor], *constants: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    value = loss(*leaves, *constants)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within ``tolerance`` of the largest element of each."""
    for mine, exact in zip(found, expected, strict=True):
        scale = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=tolerance * scale)


# fp32: a cosine is right to about 1e-7, a logit to `scale` times that.
SINGLE, DOUBLE = 3e-5, 1e-11


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 13), others=st.integers(0, 9), bank=st.integers(0, 9), dim=st.integers(1, 9),
    images=st.one_of(st.none(), st.integers(1, 6)), scale=st.floats(0.5, 100.0), max_logits=st.integers(1, 300),
    single=st.booleans(), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_rows_columns_and_scale_get_the_plain_gradients(
    count: int, others: int, bank: int, dim: int, images: int | None, scale: float, max_logits: int, single: bool,
    seed: int,
) -> None:  # fmt: skip
    rows, columns, further = draw(seed, (count, dim), (count + others, dim), (bank, dim))
    columns, further = F.normalize(columns, dim=-1), F.normalize(further, dim=-1).half()
    generator = torch.Generator().manual_seed(seed)
    column_ids = torch.randint(0, images or 1, (count + others + bank,), generator=generator)
    labels = torch.randperm(count + others, generator=generator)[:count]
    ids = None if images is None else column_ids[labels]
    leaves = [rows, columns, torch.tensor([scale]).double()]

    def reference(r: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return plain(F.normalize(r, dim=-1), torch.cat([c, further.to(c)]), s, labels, ids, column_ids)

    def ours(r: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return cosine_cross_entropy(
            r, c, s, labels, ids, column_ids, max_logits, bank=further, normalise_rows=True
        )

    expected = with_gradients(reference, leaves)
    found = with_gradients(ours, [x.float() for x in leaves] if single else leaves)
    assert all(x.dtype == (torch.float32 if single else torch.float64) for x in found)
    agree(found, expected, SINGLE if single else DOUBLE)


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 17), dim=st.integers(1, 9), images=st.one_of(st.none(), st.integers(1, 6)),
    scale=st.floats(0.5, 100.0), max_logits=st.integers(1, 700), single=st.booleans(), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_both_directions_from_one_matrix_are_the_two_plain_ones(
    count: int, dim: int, images: int | None, scale: float, max_logits: int, single: bool, seed: int
) -> None:
    image, text = draw(seed, (count, dim), (count, dim))
    generator = torch.Generator().manual_seed(seed)
    ids = None if images is None else torch.randint(0, images, (count,), generator=generator)
    leaves = [image, text, torch.tensor([scale]).double()]
    expected = with_gradients(plain_contrast, leaves, ids)
    leaves = [x.float() for x in leaves] if single else leaves
    found = with_gradients(symmetric_cross_entropy, leaves, ids, max_logits)
    agree(found, expected, SINGLE if single else DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(symmetric_cross_entropy(*leaves, ids, max_logits), found[0])


@pytest.mark.parametrize("max_logits", [1, 17, 1 << 20])
def test_distillation_with_a_bank_equals_the_plain_one(max_logits: int) -> None:
    image, text, targets, rows = draw(5, (7, 6), (7, 6), (7, 6), (23, 6))
    ids, bank = torch.tensor([0, 1, 2, 0, 4, 5, 1]), TargetBank(16, 6)
    bank.push(normalise(rows), torch.arange(23))
    leaves = [image, text]
    scale = torch.tensor([14.0]).double()

    def reference(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return plain_distillation(i, t, targets, s, ids, bank.columns())

    def ours(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return contrastive_distillation(i, t, targets.float(), s, ids, bank.columns(), max_logits=max_logits)

    expected = with_gradients(reference, [*leaves, scale])
    agree(with_gradients(ours, [x.float() for x in [*leaves, scale]]), expected, SINGLE)


@pytest.mark.parametrize("max_logits", [1, 24, 1 << 20])
def test_gradcheck(max_logits: int) -> None:
    image, text, rows = draw(2, (5, 3), (5, 3), (4, 3))
    ids = torch.tensor([0, 1, 0, 2, 1])
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor([3.0]).double().requires_grad_()]
    assert torch.autograd.gradcheck(lambda *x: symmetric_cross_entropy(*x, ids, max_logits), leaves)

    def one_direction(r: Tensor, c: Tensor, s: Tensor) -> Tensor:
        every = torch.cat([ids, torch.arange(4)])
        return cosine_cross_entropy(
            r, c, s, torch.arange(5), ids, every, max_logits, bank=rows, normalise_rows=True
        )

    assert torch.autograd.gradcheck(one_direction, leaves)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("max_logits", [1, 1 << 20])
def test_what_is_not_finite_shows_in_the_loss_and_in_every_gradient_as_in_the_plain_one(
    bad: float, max_logits: int
) -> None:
    image, text = draw(3, (6, 4), (6, 4))
    image[2, 1] = bad
    ids, leaves = torch.tensor([0, 1, 2, 2, 3, 4]), [image, text, torch.tensor([10.0]).double()]
    expected = with_gradients(plain_contrast, leaves, ids)
    found = with_gradients(symmetric_cross_entropy, leaves, ids, max_logits)
    assert torch.isnan(found[0])
    for mine, plainly in zip(found, expected, strict=True):
        assert torch.equal(mine.isfinite(), plainly.isfinite())
    unit = [F.normalize(text, dim=-1), F.normalize(image, dim=-1), leaves[2]]
    labels = torch.arange(6)
    expected = with_gradients(plain, unit, labels, ids, ids)
    found = with_gradients(cosine_cross_entropy, unit, labels, ids, ids, max_logits)
    for mine, plainly in zip(found, expected, strict=True):
        assert torch.equal(mine.isfinite(), plainly.isfinite())


@pytest.mark.parametrize("length", [0.0, 1e-13])
def test_an_all_but_empty_prediction_gets_the_gradient_of_f_normalize(length: float) -> None:
    image, text = draw(4, (4, 5), (4, 5))
    image[1] *= length
    leaves = [image, text, torch.tensor([1.0]).double()]
    found = with_gradients(symmetric_cross_entropy, leaves, None)
    expected = with_gradients(plain_contrast, leaves, None)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-12)


def test_rows_whose_others_are_all_masked_cost_nothing() -> None:
    image, text = draw(6, (5, 4), (5, 4))
    ids = torch.zeros(5, dtype=torch.int64)
    for max_logits in (1, 1 << 20):
        found = with_gradients(
            symmetric_cross_entropy, [image, text, torch.tensor([50.0]).double()], ids, max_logits
        )
        agree(found, [torch.zeros_like(x) for x in found], 1e-13)


def test_autocast_and_half_inputs_change_no_arithmetic() -> None:
    image, text = (x.bfloat16() for x in draw(7, (48, 32), (48, 32)))
    scale, ids = torch.tensor([100.0]), torch.arange(48)
    exact = with_gradients(image_text_contrast, [image.float(), text.float(), scale], ids)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(image_text_contrast, [image, text, scale], ids)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], exact[0], rtol=1e-6, atol=0)
    assert found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[1], exact[1].bfloat16())


def test_backward_scales_by_what_comes_in_as_often_as_asked_and_has_no_second_derivative() -> None:
    image, text = (x.requires_grad_() for x in draw(8, (6, 4), (6, 4)))
    loss = symmetric_cross_entropy(image, text, torch.tensor(9.0).double(), None)
    [once] = torch.autograd.grad(loss, [image], retain_graph=True)
    [thrice] = torch.autograd.grad(3 * loss, [image], retain_graph=True)
    torch.testing.assert_close(thrice, 3 * once)
    [again] = torch.autograd.grad(loss, [image], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        again.sum().backward()


class Products(TorchDispatchMode):
    """Multiplications of all matrix products, those into a given tensor, too (torch's counter leaves them out)."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def products(run: Callable[[], object], count: int, columns: int, dim: int) -> float:
    """Matrix products [count, dim] x [dim, columns] that ``run`` makes."""
    with Products() as counter:
        run()
    return counter.multiplications / (count * columns * dim)


def test_no_product_is_made_that_nobody_asked_for() -> None:
    def contrast(max_logits: int) -> Callable[[], object]:
        return a_step("contrast", 32, 32, 8, max_logits)

    assert products(contrast(1 << 20), 32, 32, 8) == 3
    assert products(contrast(300), 32, 32, 8) == 4
    # Two predictions: logits and the gradient of the rows; nothing for targets and bank, in blocks or not.
    assert products(a_step("distillation", 32, 100, 8, 1 << 20), 64, 100, 8) == 2
    assert products(a_step("distillation", 32, 100, 8, 700), 64, 100, 8) == 2
    image, text = (x.requires_grad_() for x in draw(1, (32, 8), (32, 8)))
    scale, ids = torch.tensor([9.0]).double(), torch.arange(32)
    with torch.no_grad():
        assert products(lambda: symmetric_cross_entropy(image, text, scale, ids, 300), 32, 32, 8) == 1
        assert products(lambda: cosine_cross_entropy(image, text, scale, ids, None, ids), 32, 32, 8) == 1


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return out


def a_step(loss: str, count: int, size: int, dim: int, max_logits: int) -> Callable[[], object]:
    """Forward and backward of the contrast, or of the distillation against a bank that fills up ``size``."""
    image, text, targets, rows = (
        x.float() for x in draw(1, (count, dim), (count, dim), (count, dim), (size - count, dim))
    )
    ids, bank = torch.arange(count), (normalise(rows).half(), torch.arange(size - count) + count)
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor([10.0], requires_grad=True)]
    if loss == "contrast":
        return lambda: image_text_contrast(*leaves, ids, max_logits=max_logits).backward(inputs=leaves)
    return lambda: contrastive_distillation(
        leaves[0], leaves[1], targets, leaves[2], ids, bank, max_logits=max_logits
    ).backward(inputs=leaves)


@pytest.mark.parametrize("loss", ["contrast", "distillation"])
def test_no_tensor_is_larger_than_max_logits(loss: str) -> None:
    count, size, dim, max_logits = 256, 256 if loss == "contrast" else 1500, 6, 9000
    step = a_step(loss, count, size, dim, max_logits)
    with Largest() as ours:
        step()
    with Largest() as all_logits:
        a_step(loss, count, size, dim, 1 << 30)()
    assert ours.numel <= max_logits
    # The recorder does see what is held: without a limit it is the whole matrix.
    assert all_logits.numel >= count * size


@pytest.mark.parametrize(
    ("loss", "count", "size", "dim", "max_logits"),
    [
        ("contrast", 1024, 1024, 256, 1 << 16),
        ("contrast", 1024, 1024, 64, 1 << 18),
        ("contrast", 512, 512, 768, 1 << 25),
        ("distillation", 512, 8192, 128, 1 << 18),
        ("distillation", 1024, 4096, 256, 1 << 17),
        ("distillation", 64, 16384, 128, 1 << 25),
    ],
)
def test_the_accounted_memory_is_the_measured_one(
    loss: str, count: int, size: int, dim: int, max_logits: int
) -> None:
    measured = peak_bytes(a_step(loss, count, size, dim, max_logits))
    accounted = loss_bytes(
        count, size, dim, column_gradient=loss == "contrast", max_logits=max_logits, on_cpu=True
    )
    # Never under; over by a few temporaries of a block that are not all there at the same time.
    assert 0.8 * accounted <= measured <= accounted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("max_logits", [1 << 14, 1 << 25])
def test_on_cuda_the_same_values_within_the_accounted_memory(max_logits: int) -> None:
    count, dim, further = 512, 256, 4096
    image, text, targets, rows = draw(1, (count, dim), (count, dim), (count, dim), (further, dim))
    ids, bank = torch.arange(count) // 2, (F.normalize(rows, dim=-1).half(), torch.arange(further))
    scale = torch.tensor([14.0]).double()
    leaves = [x.float().cuda() for x in (image, text, scale)]
    bank_there = (bank[0].cuda(), bank[1].cuda())

    def distil(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        there = targets.float().cuda()
        return contrastive_distillation(i, t, there, s, ids.cuda(), bank_there, max_logits=max_logits)

    def contrast(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return image_text_contrast(i, t, s, ids.cuda(), max_logits=max_logits)

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for loss, columns in ((contrast, count), (distil, count + further)):
            with_gradients(loss, leaves)  # the library's workspace is there from here on
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            found = with_gradients(loss, leaves)
            peak = torch.cuda.max_memory_allocated() - before
            accounted = loss_bytes(
                count, columns, dim, column_gradient=loss is contrast, max_logits=max_logits
            )
            assert peak <= accounted + 2**20
            if loss is contrast:
                expected = with_gradients(plain_contrast, [image, text, scale], ids)
            else:
                expected = with_gradients(
                    lambda i, t, s: plain_distillation(i, t, targets, s, ids, bank), [image, text, scale]
                )
            agree([x.cpu() for x in found], expected, SINGLE)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


class Towers(nn.Module):
    """Two small encoders with a shared layer, a prediction head and two temperatures."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(24, 32), nn.Linear(12, 32)
        self.shared, self.head = nn.Sequential(nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 10)
        self.log_scales = nn.Parameter(torch.full((2,), 2.66))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = self.shared(self.image(image)), self.shared(self.text(text))
        return first, second, self.head(first), self.head(second)


def curve(fused: bool, steps: int = 200, batch: int = 24) -> list[float]:
    """Losses of a training run on made-up pairs that can be learned, several captions per image."""
    torch.manual_seed(0)
    model, bank = Towers(), TargetBank(64, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, teacher, caption = (x.float() for x in draw(9, (96, 24), (24, 10), (24, 12)))
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        ids = torch.randint(0, 96, (batch,), generator=generator)
        image = images[ids]
        text = image @ caption + 0.3 * torch.randn(batch, 12, generator=generator)
        targets, (contrast_scale, scale) = image @ teacher, model.log_scales.exp()
        i, t, pi, pt = model(image, text)
        if fused:
            loss = image_text_contrast(i, t, contrast_scale, ids, max_logits=200)
            loss = loss + contrastive_distillation(
                pi, pt, targets, scale, ids, bank.columns(), max_logits=300
            )
        else:
            loss = plain_contrast(i, t, contrast_scale, ids)
            loss = loss + plain_distillation(pi, pt, targets, scale, ids, bank.columns())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bank.push(normalise(targets), ids)
        losses.append(float(loss.detach()))
    return losses


def test_two_hundred_steps_follow_the_plain_losses() -> None:
    ours, reference = curve(fused=True), curve(fused=False)
    assert reference[-1] < 0.6 * reference[20]
    # Rounding differs in each step and training amplifies it: 0.1 % after 200 steps.
    assert ours == pytest.approx(reference, rel=1e-3)
