"""Counted by arithmetic and counted by torch: the same number, operation for operation."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssmke.cost.efficiency.flops import Part, Shapes, per_pair
from ssmke.data.batch import Batch
from ssmke.data.curriculum import CurriculumConfig, kept_count, kept_patches
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shapes import image_forward, shapes_of, shapes_of_recipe
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.teachers import TeacherConfig, build_teacher
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.recipes import named

BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 50,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 128,
    "max_position_embeddings": 32,
}
ALBERT = {  # shares its layers, so their sizes say nothing about how often they run
    "model_type": "albert",
    "vocab_size": 50,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4})
BEIT = (
    "beitv2_base_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
)
DATA2VEC2 = ("data2vec2_base", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4})
REGISTERS = (
    "vit_wee_patch16_reg1_gap_256",
    {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
)
PAIRS, LENGTH, IMAGE = 3, 7, 32


def student(
    image: tuple[str, dict],
    text: dict,
    *,
    kind: str = "block",
    dim: int = 32,
    frozen: bool = False,
    prediction: int | None = 24,
    modality: bool = True,
    freeze_blocks: int = 0,
    freeze_layers: int = 0,
) -> SSMKE:
    name, kwargs = image
    return SSMKE(
        StudentConfig(
            image=ImageEncoderConfig(
                name=name,
                depth=2 if "depth" in kwargs else None,
                weights="none",
                frozen=frozen,
                freeze_blocks=freeze_blocks,
                timm_kwargs=kwargs,
                image_size=None if kwargs else IMAGE,
            ),
            text=TextEncoderConfig(
                name="tiny",
                depth=None,
                weights="none",
                architecture=dict(text),
                max_tokens=20,
                freeze_layers=freeze_layers,
            ),
            shared=SharedConfig(kind=kind, dim=dim, heads=4),  # type: ignore[arg-type]
            modality_embedding=modality,
            prediction_dim=prediction,
        ),
        quiet=True,
    )


def batch(targets: int | None) -> Batch:
    return Batch(
        images=torch.zeros((PAIRS, 3, IMAGE, IMAGE), dtype=torch.uint8),
        ids=torch.ones((PAIRS, LENGTH), dtype=torch.int64),
        mask=torch.ones((PAIRS, LENGTH), dtype=torch.bool),
        image_ids=torch.arange(PAIRS),
        keys=[str(i) for i in range(PAIRS)],
        targets=None if targets is None else torch.randn(PAIRS, targets),
    )


def product_added_in_place(_: tuple, left: tuple, right: tuple, **__: object) -> int:
    """What the losses use, and torch's counter does not know."""
    return 2 * left[0] * left[1] * right[1]


def counted(work) -> int:
    also = {torch.ops.aten.addmm_: product_added_in_place}
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=also) as counter,
    ):
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("image", [VIT, BEIT, DATA2VEC2, REGISTERS, ("mobilenetv2_050", {})])
@pytest.mark.parametrize("text", [BERT, DISTILBERT, ALBERT])
@pytest.mark.parametrize("kind", ["block", "mlp"])
def test_a_training_step_costs_what_torch_counts(image: tuple[str, dict], text: dict, kind: str) -> None:
    torch.manual_seed(0)
    module = SSMKEPretraining(student(image, text, kind=kind), LossConfig(bank_size=50))
    data = batch(24)
    module.remember(batch(24))
    module.bank.push(nn.functional.normalize(torch.randn(47, 24)), torch.arange(47) + 100)

    shapes = shapes_of(module, None, distillation=True, online_teacher=False, max_tokens=20, batch_size=PAIRS)
    assert PAIRS * per_pair(shapes, LENGTH).total == counted(lambda: module(data)["loss"].backward())


@pytest.mark.parametrize(
    ("frozen", "dim", "prediction", "modality"),
    [
        (True, 32, 24, True),
        (True, 48, None, False),
        (False, 48, 24, False),
    ],
)
def test_frozen_encoders_and_projections_cost_what_torch_counts(
    frozen: bool, dim: int, prediction: int | None, modality: bool
) -> None:
    module = SSMKEPretraining(
        student(VIT, BERT, frozen=frozen, dim=dim, prediction=prediction, modality=modality),
        LossConfig(distillation="none", bank="none", contrast="output"),
    )
    shapes = shapes_of(
        module, None, distillation=False, online_teacher=False, max_tokens=20, batch_size=PAIRS
    )
    assert PAIRS * per_pair(shapes, LENGTH).total == counted(lambda: module(batch(None))["loss"].backward())


@pytest.mark.parametrize("text", [BERT, DISTILBERT])
@pytest.mark.parametrize(
    ("image", "blocks", "layers"),
    [
        (VIT, 1, 1),
        (VIT, 2, 2),
        (BEIT, 1, 0),
        (DATA2VEC2, 1, 2),
        (DATA2VEC2, 2, 1),
        (REGISTERS, 1, 1),
        (("mobilenetv2_050", {}), 3, 1),
        (("mobilenetv2_050", {}), 7, 2),
    ],
)
def test_frozen_lower_blocks_cost_what_torch_counts(
    image: tuple[str, dict], text: dict, blocks: int, layers: int
) -> None:
    module = SSMKEPretraining(
        student(image, text, freeze_blocks=blocks, freeze_layers=layers),
        LossConfig(distillation="mse", bank="none"),
    )
    shapes = shapes_of(module, None, distillation=True, online_teacher=False, max_tokens=20, batch_size=PAIRS)
    assert PAIRS * per_pair(shapes, LENGTH).total == counted(lambda: module(batch(24))["loss"].backward())


@pytest.mark.parametrize(
    ("image", "side", "drop"),
    [
        (VIT, 32, 0.5),
        (VIT, 16, 0.0),
        (VIT, 24, 0.7),
        (BEIT, 24, 0.3),
        (DATA2VEC2, 24, 0.3),
        (REGISTERS, 24, 0.3),
        (("mobilenetv2_050", {}), 24, 0.0),
    ],
)
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_curriculum_costs_what_torch_counts(
    image: tuple[str, dict], side: int, drop: float, blocks: int
) -> None:
    module = SSMKEPretraining(
        student(image, BERT, freeze_blocks=blocks), LossConfig(distillation="mse", bank="none")
    )

    def cost(share: float) -> float:
        config = CurriculumConfig(side, drop, share)
        shapes = shapes_of(
            module,
            None,
            distillation=True,
            online_teacher=False,
            max_tokens=20,
            batch_size=PAIRS,
            curriculum=config,
        )
        return per_pair(shapes, LENGTH).total

    data = batch(24)
    whole = counted(lambda: module(data)["loss"].backward())
    data.images = data.images[:, :, :side, :side]
    if drop:
        patches = (side // 8) ** 2
        kept = [torch.from_numpy(kept_patches(str(i), 0, patches, drop)) for i in range(PAIRS)]
        data.kept = torch.stack(kept)
        assert data.kept.shape[1] == kept_count(patches, drop) < patches
    cheap = counted(lambda: module(data)["loss"].backward())
    assert cheap < whole
    assert round(PAIRS * cost(1.0), 3) == cheap
    assert round(PAIRS * cost(0.0), 3) == whole
    assert PAIRS * cost(0.75) == pytest.approx(0.75 * cheap + 0.25 * whole, rel=1e-12)


def test_cached_tokens_leave_the_image_encoder_out() -> None:
    module = SSMKEPretraining(student(VIT, BERT, frozen=True), LossConfig(distillation="mse", bank="none"))
    data = batch(24)
    data.images = torch.randn(PAIRS, 17 * 32)
    shapes = shapes_of(
        module,
        None,
        distillation=True,
        online_teacher=False,
        max_tokens=20,
        batch_size=PAIRS,
        cached_tokens=True,
    )
    assert PAIRS * per_pair(shapes, LENGTH).total == counted(lambda: module(data)["loss"].backward())


@pytest.mark.parametrize(
    ("image", "output"),
    [(VIT, "features"), (VIT, "logits"), (BEIT, "features"), (("mobilenetv2_050", {}), "features")],
)
def test_a_teacher_costs_one_forward_pass(image: tuple[str, dict], output: str) -> None:
    name, kwargs = image
    teacher = build_teacher(
        TeacherConfig(
            name=name,
            weights="none",
            output=output,  # type: ignore[arg-type]
            timm_kwargs=kwargs,
            image_size=None if kwargs else IMAGE,
        ),
        quiet=True,
    )
    measured = counted(lambda: teacher(batch(None).images)) / PAIRS
    small = student(VIT, BERT, prediction=teacher.dim)
    online = shapes_of(small, teacher, distillation=True, online_teacher=True, max_tokens=20)
    cached = shapes_of(small, teacher, distillation=True, online_teacher=False, max_tokens=20)
    assert (online.teacher, online.cached_teacher) == (measured, 0)
    assert (cached.teacher, cached.cached_teacher) == (0, measured)
    assert per_pair(online, 5).total - per_pair(cached, 5).total == measured


def test_an_untrained_prediction_head_is_forward_only() -> None:
    small = student(VIT, BERT)
    trained, idle = (
        shapes_of(small, None, distillation=on, online_teacher=False, max_tokens=20) for on in (True, False)
    )
    assert per_pair(trained, 5).total - per_pair(idle, 5).total == 2 * (2 * 2 * 32 * 24)


def test_counting_changes_nothing_in_the_model() -> None:
    small = student(("mobilenetv2_050", {}), ALBERT)
    modes = [module.training for module in small.modules()]
    state = {name: value.clone() for name, value in small.state_dict().items()}
    shapes_of(small, None, distillation=True, online_teacher=False, max_tokens=20)
    assert modes == [module.training for module in small.modules()]
    assert all(parameter.grad is None for parameter in small.parameters())
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())


@pytest.fixture(scope="module")
def base() -> Shapes:
    return shapes_of_recipe(named("ssmke-base"))


def part(shapes: Shapes, name: str) -> Part:
    return next(p for p in shapes.parts if p.name.startswith(name))


def test_the_published_model_costs_what_the_specification_derives(base: Shapes) -> None:
    blocks, text = part(base, "image encoder"), part(base, "text encoder")
    embedding = part(base, "patch embedding").fixed
    # Seven full blocks, as the specification counts them; ours evaluates the seventh at the [CLS] alone.
    assert blocks.fixed * 7 / 6 + embedding == pytest.approx(20.6e9, abs=0.05e9)
    assert text.forward(64) * 7 / 6 == pytest.approx(6.4e9, abs=0.05e9)
    assert text.forward(13) * 7 / 6 == pytest.approx(1.3e9, abs=0.05e9)
    assert base.cached_teacher == pytest.approx(35.2e9, abs=0.1e9)
    assert part(base, "shared block").forward(0) < 0.25 * blocks.fixed / 6


def test_the_full_size_student_agrees_with_torch() -> None:
    with torch.device("meta"):
        config = named("ssmke-base").model
        whole = SSMKE(
            dataclasses.replace(
                config,
                image=dataclasses.replace(config.image, weights="none"),
                text=dataclasses.replace(config.text, weights="none"),
                prediction_dim=768,
            ),
            quiet=True,
        )
        shapes = shapes_of(whole, None, distillation=True, online_teacher=False, max_tokens=64)
        images = torch.zeros((1, 3, 224, 224), dtype=torch.uint8)
        ids = torch.zeros((1, 64), dtype=torch.int64)

        def step() -> None:
            outputs = whole(images, ids, torch.ones_like(ids, dtype=torch.bool))
            sum(value.sum() for value in outputs.values()).backward()

        assert per_pair(shapes, 64).total == counted(step)


@pytest.mark.parametrize(
    "name", ["scenes-tiny", "ssmke-base", "ssmke-base-kl", "ssmke-base-no-kd", "shre-transformer"]
)
def test_a_recipe_is_counted_without_its_weights(name: str) -> None:
    shapes = shapes_of_recipe(named(name))
    assert shapes.max_tokens == 64
    costs = [per_pair(shapes, n).total for n in (0, 13, 64)]
    assert all(low < high for low, high in itertools.pairwise(costs))
    assert (shapes.cached_teacher > 0) == (name != "ssmke-base-no-kd")


def test_a_recipe_counts_as_the_modules_it_describes() -> None:
    recipe = named("scenes-tiny")
    teacher = build_teacher(recipe.teacher)
    module = SSMKEPretraining(
        SSMKE(dataclasses.replace(recipe.model, prediction_dim=teacher.dim)), recipe.loss
    )
    built = shapes_of(
        module,
        teacher,
        distillation=True,
        online_teacher=False,
        max_tokens=recipe.model.text.max_tokens,
        batch_size=recipe.optim.batch_size,
    )
    assert shapes_of_recipe(recipe) == built
    assert image_forward(teacher.network, teacher.image_size) == built.cached_teacher
