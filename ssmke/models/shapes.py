"""What a pair costs in the student and teacher at hand: `ssmke.cost.efficiency.flops.Shapes` read off the modules.

Transformers are counted by arithmetic from the sizes of their layers, which a test compares with torch's own
FLOP counter, operation for operation. Any other encoder (a conv net, an unusual block) is run once on one
image or on three caption lengths under that counter; a forward pass has at most quadratic cost in the length,
so three lengths determine it.

Parts are counted as this project computes them: the shared block works at the [CLS] alone, frozen tokens that
come from a cache cost nothing, and gradients that nobody needs are not taken. With frozen lower blocks the first
trained layer above them needs no gradient of its input, which spares a post-norm layer (BERT, data2vec 2.0) one pass
of its projections; before those of a pre-norm block (ViT, BEiT) stands a trained norm that wants the gradient. With a
curriculum a pair costs the mean over all steps of the run. To be called while the
parameters are whole, so before DeepSpeed partitions them. Cost: nothing for transformers, a forward and
backward pass of one sample otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssmke.cost.efficiency import flops
from ssmke.cost.efficiency.flops import FROZEN, ONE_GRADIENT, TRAINED, Part, Shapes
from ssmke.data.curriculum import CurriculumConfig, Phase, kept_count
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
from ssmke.models.shared import SharedBlock, SharedMLP, SharedNothing
from ssmke.models.student import SSMKE
from ssmke.models.teachers import FLAG, Teacher, TeacherConfig
from ssmke.models.text_encoders import TextEncoder, TextEncoderConfig, text_layers
from ssmke.models.weights import resolve_path

if TYPE_CHECKING:
    from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
    from ssmke.recipes import Recipe

_PLAIN_TEXT = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert")
"""transformers' model types whose matrix products are all in their layers, which are post-norm."""

_ATTENTION_INPUTS = ("query", "key", "value", "q_lin", "k_lin", "v_lin")
"""transformers' names of the projections that read a layer's input."""


def shapes_of(
    module: SSMKEPretraining | SSMKE,
    teacher: Teacher | None,
    *,
    distillation: bool,
    online_teacher: bool,
    max_tokens: int,
    batch_size: int | None = None,
    cached_tokens: bool = False,
    cached_text: bool = False,
    curriculum: CurriculumConfig | None = None,
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
        cached_text: the frozen text encoder's features do.
        curriculum: what the student sees of an image in which share of the steps. None: all of it in all steps.
    """
    student = module if isinstance(module, SSMKE) else module.student
    phases = (curriculum or CurriculumConfig()).phases(student.image_size)
    text = _text_parts(student.text_encoder, max_tokens)
    parts = [] if cached_tokens else _image_parts(student.image_encoder, phases)
    parts += [] if cached_text else text
    parts += _joint_parts(student, distillation, phases)
    if batch_size is not None and not isinstance(module, SSMKE):
        size = 0 if module.bank is None else module.bank.size
        parts += _loss_parts(student, module.config, module.levels, batch_size, size)
    forward = 0.0 if teacher is None else image_forward(teacher.network, teacher.image_size)
    return Shapes(
        parts=tuple(parts),
        max_tokens=max_tokens,
        teacher=forward if online_teacher else 0.0,
        cached_teacher=0.0 if online_teacher else forward,
        cached_image=image_forward(student.image_encoder, student.image_size) if cached_tokens else 0.0,
        cached_text=tuple(text) if cached_text else (),
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
            teacher, dim = teacher_without_weights(recipe.teacher)
        student = SSMKE(
            dataclasses.replace(
                recipe.model,
                image=dataclasses.replace(recipe.model.image, weights="none"),
                text=text_without_weights(recipe.model.text),
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
            cached_text=recipe.targets.frozen_text,
            curriculum=recipe.data.curriculum,
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
    head = getattr(model, "head", None)
    return (
        found.stem
        + sum(found.blocks)
        + (flops.linear(head.in_features, head.out_features) if isinstance(head, nn.Linear) else 0)
    )


def _image_parts(encoder: ImageEncoder, phases: Sequence[Phase]) -> list[Part]:
    backbone: Any = encoder.backbone
    found = [vit for phase in phases if (vit := _vit(backbone, phase)) is not None]
    if not found:
        return [_counted_part(encoder, phases)]

    def mean(cost: Callable[[_Vit], float]) -> float:
        return sum(phase.share * cost(vit) for phase, vit in zip(phases, found, strict=True))

    count, lower = len(backbone.blocks), _frozen_first(backbone.blocks)
    below = mean(lambda vit: sum(vit.blocks[:lower]))
    first = mean(lambda vit: sum(vit.projections[lower : lower + 1])) if lower else 0.0
    trained = mean(lambda vit: sum(vit.blocks[lower:])) - first
    # Nothing below the patches is trained, so their gradient is not taken.
    stem = ONE_GRADIENT if _trained(backbone.patch_embed) else FROZEN
    parts = (
        Part("patch embedding", stem, fixed=mean(lambda vit: vit.stem)),
        Part(f"image encoder, {lower} frozen blocks", FROZEN, fixed=below),
        Part("image encoder, first trained projections", ONE_GRADIENT, fixed=first),
        Part(f"image encoder, {count - lower} blocks", TRAINED, fixed=trained),
    )
    return [part for part in parts if part.fixed]


def _counted_part(encoder: ImageEncoder, phases: Sequence[Phase]) -> Part:
    forward = train = 0.0
    for phase in phases:
        images = _images(encoder.backbone, phase.side)
        forward += phase.share * _counted(encoder.backbone, images)
        if _trained(encoder):
            train += phase.share * _counted(encoder.backbone, images, train=True)
    return Part("image encoder", train / forward if train else FROZEN, fixed=forward)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _frozen_first(blocks: Sequence[nn.Module]) -> int:
    """How many blocks from the first on are not trained."""
    return next((number for number, block in enumerate(blocks) if _trained(block)), len(blocks))


@dataclass(frozen=True)
class _Vit:
    """Operations of one image through a plain ViT, forward."""

    stem: float
    """The patch embedding."""
    blocks: tuple[float, ...]
    """Each block."""
    projections: tuple[float, ...]
    """Of each block the layers whose input is that of the block; none in a pre-norm block."""


def _vit(model: nn.Module, phase: Phase | None = None) -> _Vit | None:
    """What an image costs in a plain ViT, by default a whole one; None for what arithmetic does not know."""
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
    if phase is not None:
        patches = (phase.side // projection.kernel_size[0]) ** 2
    stem = flops.patch_embedding(
        patches, projection.kernel_size[0], projection.out_channels, projection.in_channels
    )
    tokens = (patches if phase is None else kept_count(patches, phase.drop)) + prefix
    per_block = [size for size in sizes if size is not None]
    post_norm = isinstance(model, Data2Vec2Image)
    return _Vit(
        float(stem),
        tuple(
            flops.image_blocks(1, per_token=dense, attention_dim=dim, tokens=tokens)
            for dense, dim in per_block
        ),
        tuple(float(tokens * _projection(block)) if post_norm else 0.0 for block in model.blocks),
    )


def _vit_block(block: nn.Module) -> tuple[int, int] | None:
    qkv = getattr(getattr(block, "attn", None), "qkv", None)
    if not isinstance(qkv, nn.Linear) or _has_other_products(block):
        return None
    return _dense(block), qkv.out_features // 3


def _projection(block: Any) -> int:
    return _dense(block.attn.qkv)


def _has_other_products(block: nn.Module) -> bool:
    return any(isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Embedding)) for part in block.modules())


def _dense(module: nn.Module) -> int:
    """Dense layers of a module on one token."""
    return sum(
        flops.linear(part.in_features, part.out_features)
        for part in module.modules()
        if isinstance(part, nn.Linear)
    )


def _text_parts(encoder: TextEncoder, max_tokens: int) -> list[Part]:
    backbone: Any = encoder.backbone
    config = backbone.config
    if config.model_type not in _PLAIN_TEXT:
        return [_fitted(encoder, TRAINED if _trained(encoder) else FROZEN, max_tokens)]
    layers = text_layers(backbone)
    lower = _frozen_first(layers)
    per_token = _dense(layers[0])

    def stack(name: str, count: int, passes: float) -> Part:
        return flops.text_blocks(
            f"text encoder, {name}",
            count,
            per_token=per_token,
            attention_dim=config.hidden_size,
            passes=passes,
        )

    if not lower:
        return [stack(f"{len(layers)} layers", len(layers), TRAINED)]
    parts = [stack(f"{lower} frozen layers", lower, FROZEN)]
    if lower < len(layers):
        inputs = [part for name, part in layers[lower].named_modules() if name.endswith(_ATTENTION_INPUTS)]
        first = float(sum(_dense(part) for part in inputs))
        trained = stack(f"{len(layers) - lower} layers", len(layers) - lower, TRAINED)
        parts.append(dataclasses.replace(trained, per_token=trained.per_token - first))
        parts.append(Part("text encoder, first trained projections", ONE_GRADIENT, per_token=first))
    return parts


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


def _joint_parts(student: SSMKE, distillation: bool, phases: Sequence[Phase]) -> list[Part]:
    """Projections, shared encoder for both modalities, prediction head for both."""
    pooled = student.config.pool != "none"
    tokens = 1.0 if pooled else sum(p.share * _image_tokens(student.image_encoder, p) for p in phases)

    def of_text(name: str, each: float, once: float = 0.0) -> Part:
        """``each``: operations on a token of the caption, which is one where it is pooled; ``once``: beside them."""
        return Part(name, TRAINED, once + each) if pooled else Part(name, TRAINED, once, each)

    parts = [
        Part("image projection", TRAINED, fixed=float(_dense(student.image_projection) * tokens)),
        of_text("text projection", float(_dense(student.text_projection))),
    ]
    shared = student.shared
    if isinstance(shared, SharedBlock):
        once, each = flops.cls_block(shared.proj.in_features, shared.fc1.out_features)
        parts.append(of_text("shared block", float(each), 2.0 * once + each * tokens))
    elif isinstance(shared, SharedMLP):
        parts.append(Part("shared MLP", TRAINED, fixed=2.0 * _dense(shared)))
    if student.prediction is not None:
        passes = TRAINED if distillation else FROZEN
        parts.append(Part("prediction head", passes, fixed=2.0 * _dense(student.prediction)))
    return [part for part in parts if part.fixed or part.per_token]


def _image_tokens(encoder: ImageEncoder, phase: Phase) -> int:
    """Tokens that leave the encoder: patches or map cells, [CLS] (or the mean in its place), registers."""
    if phase.side == encoder.image_size:
        rows, columns = encoder.grid
    elif encoder.patch_size is not None:
        rows = columns = phase.side // encoder.patch_size
    else:
        with torch.no_grad():
            return int(encoder(_images(encoder.backbone, phase.side)).shape[1])
    own = (
        1
        if isinstance(encoder.backbone, Data2Vec2Image)
        else getattr(encoder.backbone, "num_prefix_tokens", 0)
    )
    has_cls = (
        isinstance(encoder.backbone, Data2Vec2Image)
        or getattr(encoder.backbone, "cls_token", None) is not None
    )
    return int(kept_count(rows * columns, phase.drop) + own + (0 if has_cls else 1))


def _loss_parts(
    student: SSMKE, config: LossConfig, levels: tuple[str, ...], batch_size: int, bank: int
) -> list[Part]:
    """Logits of images against captions, which serve both directions, and of both predictions against targets."""
    widths = level_widths(student)
    logits = 2 * batch_size * sum(widths[level] for level in levels)
    parts = [Part("contrast", TRAINED, fixed=float(logits))]
    dim = student.config.prediction_dim
    if config.distillation == "contrastive" and dim is not None:
        parts.append(Part("distillation", ONE_GRADIENT, fixed=float(2 * 2 * (batch_size + bank) * dim)))
    return parts


def level_widths(student: SSMKE) -> dict[str, int]:
    """Width of the [CLS] at each level that the contrast may use."""
    shared = student.shared
    hidden = {} if isinstance(shared, SharedNothing) else {"hidden": shared.fc1.out_features}
    return {"output": student.dim, "input": student.dim, **hidden}


def teacher_network(config: TeacherConfig) -> tuple[nn.Module, int]:
    """The teacher's network without weights, and the side of its images; to be called under the meta device."""
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
        return encoder, encoder.image_size
    model, _, _ = create_backbone(settings, "classes" if config.output == "logits" else "pooled", FLAG)
    if isinstance(model, PlainViT):
        return model, set_image_size(model, settings, FLAG)[0]
    return model, config.image_size or native_image_size(model)


def teacher_without_weights(config: TeacherConfig) -> tuple[float, int]:
    """(forward, width of its output) of a teacher on the meta device."""
    network, size = teacher_network(config)
    if isinstance(network, ImageEncoder):
        return image_forward(network, size), network.dim
    with torch.no_grad():
        width = network.eval()(_images(network, size)).shape[1]
    return image_forward(network, size), int(width)


def text_without_weights(config: TextEncoderConfig) -> TextEncoderConfig:
    """The same architecture with random weights."""
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
