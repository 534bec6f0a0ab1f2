"""What a pair costs in the student and teacher at hand: `ssmke.cost.efficiency.flops.Shapes` read off the modules.

Transformers are counted by arithmetic from the sizes of their layers, which a test compares with torch's own
FLOP counter, operation for operation. Any other encoder (a conv net, an unusual block) is run once on one
image or on three caption lengths under that counter; a forward pass has at most quadratic cost in the length,
so three lengths determine it.

Parts are counted as this project computes them: the shared block works at the [CLS] alone, frozen tokens that
come from a cache cost nothing, and gradients that nobody needs are not taken. To be called while the
parameters are whole, so before DeepSpeed partitions them. Cost: nothing for transformers, a forward and
backward pass of one sample otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssmke.cost.efficiency import flops
from ssmke.cost.efficiency.flops import FROZEN, ONE_GRADIENT, TRAINED, Part, Shapes
from ssmke.models.data2vec2 import Data2Vec2Image
from ssmke.models.image_encoders import (
    ImageEncoder,
    ImageEncoderConfig,
    PlainViT,
    build_image_encoder,
    create_backbone,
    cuts_into_blocks,
    native_image_size,
    set_image_size,
)
from ssmke.models.shared import SharedBlock, SharedMLP
from ssmke.models.student import SSMKE
from ssmke.models.teachers import FLAG, Teacher, TeacherConfig
from ssmke.models.text_encoders import TextEncoder, TextEncoderConfig
from ssmke.models.weights import resolve_path

if TYPE_CHECKING:
    from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
    from ssmke.recipes import Recipe

_PLAIN_TEXT = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert")
"""transformers' model types whose matrix products are all in their layers."""


def shapes_of(
    module: SSMKEPretraining | SSMKE,
    teacher: Teacher | None,
    *,
    distillation: bool,
    online_teacher: bool,
    max_tokens: int,
    batch_size: int | None = None,
    cached_tokens: bool = False,
) -> Shapes:
    """What a training pair costs.

    Args:
        module: the objective, or the student alone (then without its losses).
        teacher: its forward pass counts with ``online_teacher``, else it is what the target cache saves.
        distillation: the prediction head learns from the teacher.
        online_teacher: the teacher runs in every step.
        max_tokens: where captions are cut.
        batch_size: pairs per step over all ranks, which the losses compare each pair with. None: no losses.
        cached_tokens: the frozen image encoder's tokens come from a cache.
    """
    student = module if isinstance(module, SSMKE) else module.student
    parts = [] if cached_tokens else _image_parts(student.image_encoder)
    parts += [_text_part(student.text_encoder, max_tokens), *_joint_parts(student, distillation)]
    if batch_size is not None and not isinstance(module, SSMKE):
        size = 0 if module.bank is None else module.bank.size
        parts += _loss_parts(student, module.config, module.levels, batch_size, size)
    forward = 0.0 if teacher is None else image_forward(teacher.network, teacher.image_size)
    return Shapes(
        parts=tuple(parts),
        max_tokens=max_tokens,
        teacher=forward if online_teacher else 0.0,
        cached_teacher=0.0 if online_teacher else forward,
    )


def shapes_of_recipe(recipe: Recipe) -> Shapes:
    """The same before anything exists: student and teacher are built without memory and without weights.

    Raises:
        WeightsError: the text encoder's architecture is neither built in, nor in a folder, nor on the hub.
    """
    teacher, dim = 0.0, recipe.model.prediction_dim
    distillation = recipe.loss.distillation != "none"
    with torch.device("meta"):
        if distillation:
            teacher, dim = _teacher_without_weights(recipe.teacher)
        student = SSMKE(
            dataclasses.replace(
                recipe.model,
                image=dataclasses.replace(recipe.model.image, weights="none"),
                text=_text_without_weights(recipe.model.text),
                prediction_dim=dim,
            ),
            quiet=True,
        )
        shapes = shapes_of(
            student,
            None,
            distillation=distillation,
            online_teacher=False,
            max_tokens=recipe.model.text.max_tokens,
            cached_tokens=recipe.targets.frozen_tokens,
        )
    levels = student.levels if recipe.loss.contrast == "all" else student.levels[:1]
    bank = recipe.loss.bank_size if recipe.loss.uses_bank else 0
    losses = _loss_parts(student, recipe.loss, levels, recipe.optim.batch_size, bank)
    online = recipe.targets.mode == "online"
    return dataclasses.replace(
        shapes,
        parts=(*shapes.parts, *losses),
        teacher=teacher if online else 0.0,
        cached_teacher=0.0 if online else teacher,
    )


def image_forward(model: nn.Module, image_size: int) -> float:
    """Operations of one image through a vision model, forward."""
    model = model.backbone if isinstance(model, ImageEncoder) else model
    found = _vit(model)
    if found is None:
        return _counted(model, _images(model, image_size))
    stem, blocks, _ = found
    head = getattr(model, "head", None)
    return (
        stem
        + blocks
        + (flops.linear(head.in_features, head.out_features) if isinstance(head, nn.Linear) else 0)
    )


def _image_parts(encoder: ImageEncoder) -> list[Part]:
    found = _vit(encoder.backbone)
    if found is not None:
        stem, blocks, name = found
        # Nothing below the patches is trained, so their gradient is not taken.
        passes = (FROZEN, FROZEN) if encoder.frozen else (ONE_GRADIENT, TRAINED)
        return [Part("patch embedding", passes[0], fixed=stem), Part(name, passes[1], fixed=blocks)]
    images = _images(encoder.backbone, encoder.image_size)
    forward = _counted(encoder.backbone, images)
    if encoder.frozen or not forward:
        return [Part("image encoder", FROZEN, fixed=forward)]
    return [Part("image encoder", _counted(encoder.backbone, images, train=True) / forward, fixed=forward)]


def _vit(model: nn.Module) -> tuple[float, float, str] | None:
    """(patch embedding, blocks, name) of a plain ViT, forward; None for what arithmetic does not know."""
    if not isinstance(model, PlainViT):
        return None
    if isinstance(model, Data2Vec2Image):
        projection, patches, prefix = model.patch_embed, model.grid**2, 1
    elif type(model.patch_embed) is PatchEmbed and isinstance(model.patch_embed.proj, nn.Conv2d):
        projection, patches = model.patch_embed.proj, model.patch_embed.num_patches
        prefix = model.num_prefix_tokens
    else:
        return None
    if isinstance(model, VisionTransformer) and getattr(model, "attn_pool", None) is not None:
        return None
    sizes = [_vit_block(block) for block in model.blocks]
    if None in sizes:
        return None
    stem = flops.patch_embedding(
        patches, projection.kernel_size[0], projection.out_channels, projection.in_channels
    )
    blocks = sum(
        flops.image_blocks(1, per_token=size[0], attention_dim=size[1], tokens=patches + prefix)
        for size in sizes
        if size is not None
    )
    return float(stem), float(blocks), f"image encoder, {len(sizes)} blocks"


def _vit_block(block: nn.Module) -> tuple[int, int] | None:
    qkv = getattr(getattr(block, "attn", None), "qkv", None)
    if not isinstance(qkv, nn.Linear) or _has_other_products(block):
        return None
    return _dense(block), qkv.out_features // 3


def _has_other_products(block: nn.Module) -> bool:
    return any(isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Embedding)) for part in block.modules())


def _dense(module: nn.Module) -> int:
    """Dense layers of a module on one token."""
    return sum(
        flops.linear(part.in_features, part.out_features)
        for part in module.modules()
        if isinstance(part, nn.Linear)
    )


def _text_part(encoder: TextEncoder, max_tokens: int) -> Part:
    trained = any(parameter.requires_grad for parameter in encoder.parameters())
    passes = TRAINED if trained else FROZEN
    backbone: Any = encoder.backbone
    config = backbone.config
    if config.model_type in _PLAIN_TEXT:
        stack = backbone.transformer if config.model_type == "distilbert" else backbone.encoder
        layers = list(stack.layer)
        return flops.text_blocks(
            f"text encoder, {len(layers)} layers",
            len(layers),
            per_token=_dense(layers[0]),
            attention_dim=config.hidden_size,
            passes=passes,
        )
    return _fitted(encoder, passes, max_tokens)


def _fitted(encoder: TextEncoder, passes: float, max_tokens: int) -> Part:
    """A text encoder of another make, from three lengths: the second differences are the quadratic term."""
    device = next(encoder.parameters()).device

    def cost(length: int) -> float:
        ids = torch.zeros((1, length), dtype=torch.int64, device=device)
        return _counted(encoder, ids, torch.ones_like(ids, dtype=torch.bool))

    far = max(3, max_tokens)
    middle = (1 + far) // 2
    one, two, three = cost(1), cost(middle), cost(far)
    slope, steeper = (two - one) / (middle - 1), (three - two) / (far - middle)
    squared = (steeper - slope) / (far - 1)
    per_token = slope - squared * (1 + middle)
    return Part("text encoder", passes, one - per_token - squared, per_token, squared)


def _joint_parts(student: SSMKE, distillation: bool) -> list[Part]:
    """Projections, shared encoder for both modalities, prediction head for both."""
    tokens = _image_tokens(student.image_encoder)
    parts = [
        Part("image projection", TRAINED, fixed=float(_dense(student.image_projection) * tokens)),
        Part("text projection", TRAINED, per_token=float(_dense(student.text_projection))),
    ]
    shared = student.shared
    if isinstance(shared, SharedBlock):
        once, each = flops.cls_block(shared.proj.in_features, shared.fc1.out_features)
        parts.append(Part("shared block", TRAINED, fixed=2.0 * once + each * tokens, per_token=float(each)))
    elif isinstance(shared, SharedMLP):
        parts.append(Part("shared MLP", TRAINED, fixed=2.0 * _dense(shared)))
    if student.prediction is not None:
        passes = TRAINED if distillation else FROZEN
        parts.append(Part("prediction head", passes, fixed=2.0 * _dense(student.prediction)))
    return [part for part in parts if part.fixed or part.per_token]


def _image_tokens(encoder: ImageEncoder) -> int:
    """Tokens that leave the encoder: patches or map cells, [CLS] (or the mean in its place), registers."""
    rows, columns = encoder.grid
    own = (
        1
        if isinstance(encoder.backbone, Data2Vec2Image)
        else getattr(encoder.backbone, "num_prefix_tokens", 0)
    )
    has_cls = (
        isinstance(encoder.backbone, Data2Vec2Image)
        or getattr(encoder.backbone, "cls_token", None) is not None
    )
    return int(rows * columns + own + (0 if has_cls else 1))


def _loss_parts(
    student: SSMKE, config: LossConfig, levels: tuple[str, ...], batch_size: int, bank: int
) -> list[Part]:
    """Logits of both directions: image against captions and back, predictions against targets."""
    shared = student.shared
    widths = {"output": student.dim, "input": student.dim, "hidden": shared.fc1.out_features}
    both = 2 * 2 * batch_size * sum(widths[level] for level in levels)
    parts = [Part("contrast", TRAINED, fixed=float(both))]
    dim = student.config.prediction_dim
    if config.distillation == "contrastive" and dim is not None:
        parts.append(Part("distillation", ONE_GRADIENT, fixed=float(2 * 2 * (batch_size + bank) * dim)))
    return parts


def _teacher_without_weights(config: TeacherConfig) -> tuple[float, int]:
    """(forward, width of its output) of a teacher on the meta device."""
    settings = ImageEncoderConfig(
        name=config.name,
        depth=None,
        weights="none",
        frozen=True,
        image_size=config.image_size,
        timm_kwargs=config.timm_kwargs,
    )
    if config.output == "features" and cuts_into_blocks(settings, FLAG):
        encoder = build_image_encoder(settings, quiet=True, flag=FLAG)
        return image_forward(encoder, encoder.image_size), encoder.dim
    model, _, _ = create_backbone(settings, "classes" if config.output == "logits" else "pooled", FLAG)
    if isinstance(model, PlainViT):
        size, _ = set_image_size(model, settings, FLAG)
    else:
        size = config.image_size or native_image_size(model)
    with torch.no_grad():
        width = model.eval()(_images(model, size)).shape[1]
    return image_forward(model, size), int(width)


def _text_without_weights(config: TextEncoderConfig) -> TextEncoderConfig:
    architecture = config.architecture
    if architecture is None and config.weights not in ("hub", "none"):
        path = resolve_path(config.weights)
        file = (path if path.is_dir() else path.parent) / "config.json"
        if file.is_file():
            architecture = json.loads(file.read_text(encoding="utf-8"))
    return dataclasses.replace(config, weights="none", architecture=architecture)


def _images(model: nn.Module, size: int) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros((1, 3, size, size), device=parameter.device, dtype=parameter.dtype)


def _counted(model: nn.Module, *inputs: Tensor, train: bool = False) -> float:
    """Operations of one call under torch's counter; with ``train`` those of its backward pass too."""
    # Not `train(mode)` afterwards: batch norms stay in evaluation mode while the rest trains.
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        # The fused attention of the CPU has no formula in torch's counter; its plain one is two products.
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            torch.set_grad_enabled(train),
        ):
            out = model(*inputs)
            if train:
                parameters = [p for p in model.parameters() if p.requires_grad]
                torch.autograd.grad(out.float().sum(), parameters, allow_unused=True)
    finally:
        for part, mode in modes:
            part.training = mode
    return float(counter.get_total_flops())
