"""The image half of the student: the first blocks of a pretrained vision model, as tokens with [CLS] first.

Three kinds of model, one output, [B, N, dim]:

- a timm ViT or BEiT (``vit_*``, ``deit*``, ``beit*``, ``beitv2*``): patch embedding, positions and the first
  ``depth`` blocks. Final norm and head are gone, so tokens are the residual stream after the last kept block.
  Register tokens, where a model has them, stay behind [CLS]; where there is no [CLS], the mean token is it.
- ``data2vec2_base`` (`ssmke.models.data2vec2`), cut in the same way.
- any other timm model that ends in a spatial map (``mobilenetv2_100``, ``resnet50``): each cell is a token,
  and their mean, put in front, is the [CLS]. Such a model is used whole.

Why the timm model is called as a whole and not block by block: parameters such as positions belong to the
outermost module, and ZeRO-3 gathers them only around the forward of the module that owns them. The cut model
therefore keeps timm's own ``forward``, with head, norm and pooling replaced by identities.

Images may be smaller than the encoder's size, and a ViT may be shown some of the patches only (`patches`). The lower
blocks can be frozen: as nothing below them is trained either, they then cost a forward pass and no memory for a
backward one.

Normalisation follows the name: a timm tag (``vit_base_patch16_224.dino``) brings its own mean and deviation,
so name the tag even when the weights come from a file. ``mean`` and ``std`` overrule it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssmke.errors import ConfigError, WeightsError
from ssmke.models import official
from ssmke.models.data2vec2 import Data2Vec2Image
from ssmke.models.patches import adapt
from ssmke.models.weights import LoadReport, UntrainedWeightsWarning, load_exactly, read_weights, resolve_path

FLAG = "--model.image"
"""Where `ImageEncoderConfig` hangs in the recipe, for messages."""

DATA2VEC2 = "data2vec2_base"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = tuple[float, float, float]
PlainViT = (VisionTransformer, Beit, Data2Vec2Image)
"""Models whose ``blocks`` can be cut."""


@dataclass
class ImageEncoderConfig:
    """Which pretrained image model, how much of it, and its weights."""

    name: str = "beitv2_base_patch16_224"
    """A timm model name, with or without tag, or "data2vec2_base"."""
    depth: int | None = 6
    """Transformer blocks to keep, from the input on. None: all; models that are no plain ViT take only None."""
    weights: str = "hub"
    """"hub" (downloaded once; BEiTv2 without tag and data2vec2 mean the official self-supervised files), a
    path, "package:<file>" that ships with ssmke, or "none" for random weights."""
    frozen: bool = False
    """Never train it: no gradient, and evaluation mode throughout."""
    freeze_blocks: int = 0
    """Never train the patch embedding, positions and first so many blocks (of a conv net: stem and first stages)."""
    image_size: int | None = None
    """Side of the square input in pixels; position tables are interpolated. None: the model's own."""
    timm_kwargs: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Extra arguments of the architecture, e.g. pad_type same, or img_size 64 patch_size 8 embed_dim 192."""
    mean: Channels | None = None
    """Channel means of pixels in 0..1. None: the model's own."""
    std: Channels | None = None
    """Channel deviations of pixels in 0..1. None: the model's own."""

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"{FLAG}.depth must be at least 1 or None, got {self.depth}")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"{FLAG}.image-size must be positive, got {self.image_size}")
        if self.freeze_blocks < 0:
            raise ConfigError(f"{FLAG}.freeze-blocks must be 0 or more, got {self.freeze_blocks}")
        self.mean, self.std = checked_channels(self.mean, self.std, FLAG)


def checked_channels(
    mean: Channels | None, std: Channels | None, flag: str
) -> tuple[Channels | None, Channels | None]:
    """Channel means and deviations as tuples (a config that was read back from JSON brings lists).

    Raises:
        ConfigError: not three numbers each, or a deviation that is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise ConfigError(f"{flag}.{name} takes three numbers (red, green, blue), got {len(values)}")
    if std is not None and min(std) <= 0:
        raise ConfigError(f"{flag}.std must be positive, got {tuple(std)}")
    return (
        None if mean is None else (float(mean[0]), float(mean[1]), float(mean[2])),
        None if std is None else (float(std[0]), float(std[1]), float(std[2])),
    )


class ImageEncoder(nn.Module):
    """Normalised images [B, 3, S, S] -> tokens [B, N, dim], [CLS] first.

    S is `image_size` or, in training, less; see `check_views` for what an encoder can take.

    Computes in the dtype of its parameters. Batch norms, where there are any, always use their stored
    statistics: those of one rank's batch are not those of the global batch, and folded ones have none to
    begin with.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int,
        grid: tuple[int, int],
        image_size: int,
        patch_size: int | None,
        mean: Channels,
        std: Channels,
        map_format: str | None,
        has_cls: bool,
        frozen: bool,
        load_report: LoadReport,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim = dim
        """Width of a token."""
        self.grid = grid
        """Rows and columns of the patch (or map cell) tokens."""
        self.image_size = image_size
        """Side of the square input in pixels."""
        self.patch_size = patch_size
        """Side of a patch in pixels where patches can be chosen; None for other encoders."""
        self.mean = mean
        self.std = std
        self.frozen = frozen
        self.load_report = load_report
        self._map_format = map_format
        self._has_cls = has_cls
        if frozen:
            self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode and not self.frozen)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """``kept``: numbers of the patches that are shown, int64 [B, K], row by row of this image; None: all."""
        if not images.is_floating_point():
            raise TypeError(f"the image encoder takes normalised images, got {images.dtype} pixels")
        images = images.to(next(self.parameters()).dtype)
        if self.frozen:
            with torch.no_grad():
                return self._tokens(images, kept)
        return self._tokens(images, kept)

    def check_views(self, side: int, patch_drop: float) -> None:
        """Whether images of ``side`` pixels with a share ``patch_drop`` of their patches left out can be shown.

        To be called while the parameters are whole.

        Raises:
            ConfigError: they cannot; the message names the flag of the curriculum.
        """
        flag = "--data.curriculum"
        if patch_drop and self.patch_size is None:
            raise ConfigError(
                f"{flag}.patch-drop {patch_drop}: {type(self.backbone).__name__} is not made of patches that could be "
                "left out; use a plain ViT or BEiT, or leave the flag out"
            )
        if side > self.image_size:
            raise ConfigError(
                f"{flag}.image-size {side} is larger than the image encoder's {self.image_size} pixels: lower it"
            )
        if side == self.image_size:
            return
        if self.patch_size is not None and side % self.patch_size:
            raise ConfigError(
                f"{flag}.image-size {side} is not a multiple of the patch size {self.patch_size}"
            )
        weight = next(self.parameters())
        try:
            with torch.no_grad():
                self(weight.new_zeros(1, 3, side, side))
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"{flag}.image-size {side}: {type(self.backbone).__name__} takes {self.image_size} pixels only "
                f"({error})"
            ) from error

    def _tokens(self, images: Tensor, kept: Tensor | None) -> Tensor:
        if self._map_format is not None:
            # What convolutions are fastest in. Inputs alone: DeepSpeed broadcasts weights as flat bytes.
            images = images.contiguous(memory_format=torch.channels_last)
        tokens: Tensor = self.backbone(images) if kept is None else self.backbone(images, kept)
        if self._map_format == "NCHW":
            tokens = tokens.flatten(2).transpose(1, 2)  # [B, H*W, D]
        elif self._map_format == "NHWC":
            tokens = tokens.flatten(1, 2)  # [B, H*W, D]
        if not self._has_cls:
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return tokens


def build_image_encoder(config: ImageEncoderConfig, *, quiet: bool = False, flag: str = FLAG) -> ImageEncoder:
    """Build the encoder and load its weights.

    Args:
        config: what to build.
        quiet: do not warn about random weights, for a caller that loads a state dict next.
        flag: what the messages call the place of ``config`` on the command line.

    Raises:
        ConfigError: no such model, it has fewer blocks than asked for, or it yields neither tokens nor a map.
        WeightsError: the weights are missing or do not fit, tensor for tensor.
    """
    model, mean, std = create_backbone(config, "tokens", flag)
    map_format: str | None = None
    patch_size: int | None = None
    if isinstance(model, PlainViT):
        _cut(model, config, flag)
        report = load_backbone(model, config, quiet, flag)
        size, grid = set_image_size(model, config, flag)
        dim = int(model.embed_dim)
        has_cls = not isinstance(model, VisionTransformer) or model.cls_token is not None
        if isinstance(model, Data2Vec2Image) or adapt(model):
            patch_size = size // grid[0]
    else:
        if config.depth is not None:
            raise ConfigError(
                f"{config.name} is no plain ViT whose first {config.depth} blocks could be kept; it can only "
                f"be used whole: {flag}.depth None"
            )
        report = load_backbone(model, config, quiet, flag)
        size = config.image_size or native_image_size(model)
        map_format = str(getattr(model, "output_fmt", "NCHW"))
        dim, grid = _probe_map(model, size, map_format, config)
        has_cls = False
    _freeze_lower(model, config, flag)
    return ImageEncoder(
        model,
        dim=dim,
        grid=grid,
        image_size=size,
        patch_size=patch_size,
        mean=config.mean or mean,
        std=config.std or std,
        map_format=map_format,
        has_cls=has_cls,
        frozen=config.frozen,
        load_report=report,
    )


def create_backbone(
    config: ImageEncoderConfig, head: Literal["tokens", "pooled", "classes"], flag: str
) -> tuple[nn.Module, Channels, Channels]:
    """The bare architecture with random weights, and the channel means and deviations that go with its name.

    Args:
        config: name and ``timm_kwargs`` are used.
        head: what the model ends in: all tokens (or the map), the pooled features, or the class scores.
        flag: what the messages call the place of ``config`` on the command line.
    """
    if config.name == DATA2VEC2:
        try:
            return Data2Vec2Image(**config.timm_kwargs), IMAGENET_MEAN, IMAGENET_STD  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{flag}.timm-kwargs do not fit {config.name}: {error}") from error
    if not timm.is_model(config.name):
        similar = timm.list_models(f"*{config.name.split('_', 1)[0]}*")[:5]
        hint = f"; timm has, for instance, {', '.join(similar)}" if similar else ""
        raise ConfigError(f"{flag}.name: neither timm nor ssmke has a model {config.name!r}{hint}")
    kwargs: dict[str, Any] = {} if head == "classes" else {"num_classes": 0}
    if head == "tokens":
        kwargs["global_pool"] = ""
    try:
        model = timm.create_model(config.name, pretrained=False, **{**kwargs, **config.timm_kwargs})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{config.name} cannot be built with {flag}.timm-kwargs {config.timm_kwargs}: {error}"
        ) from error
    if isinstance(model, Beit):
        for block in model.blocks:
            # timm's fused bias reads the weight of `qkv` around its forward, where ZeRO-3 keeps it partitioned.
            block.attn.qkv_bias_separate = True
    settings = model.pretrained_cfg
    return model, tuple(settings["mean"]), tuple(settings["std"])


def cuts_into_blocks(config: ImageEncoderConfig, flag: str) -> bool:
    """Whether the model is a ViT of ours or timm's, found out without allocating it."""
    with torch.device("meta"):
        return isinstance(create_backbone(config, "tokens", flag)[0], PlainViT)


def load_backbone(model: nn.Module, config: ImageEncoderConfig, quiet: bool, flag: str) -> LoadReport:
    """Fill a model of `create_backbone`, cut or not, with the weights that ``config.weights`` names.

    Raises:
        WeightsError: they cannot be found or read, or do not fit tensor for tensor.
    """
    if config.weights == "none":
        if not quiet:
            warn_untrained(config.name, flag)
        return LoadReport("none", 0)
    given = _pretrained(config, len(model.blocks) if isinstance(model, PlainViT) else None, flag)
    if (given.layout == "data2vec2") != isinstance(model, Data2Vec2Image):
        raise WeightsError(
            f"{config.weights} is a checkpoint of the {given.layout} layout, which does not go with "
            f"{flag}.name {config.name}"
        )
    kept = official.drop(given, _superfluous(model))
    return load_exactly(
        model, kept.state, source=source_name(config.name, config.weights), dropped=kept.dropped
    )


def source_name(name: str, weights: str) -> str:
    """What to call the weights in messages and reports."""
    return f"{name} from the hub" if weights == "hub" else str(resolve_path(weights))


def warn_untrained(name: str, flag: str) -> None:
    """Say loudly that a model starts from nothing."""
    warnings.warn(
        f"{name} has RANDOM weights ({flag}.weights none): nothing was learned before this run",
        UntrainedWeightsWarning,
        stacklevel=3,
    )


def native_image_size(model: nn.Module) -> int:
    """The side in pixels that a timm model was trained with."""
    settings: Any = model.pretrained_cfg
    return int(settings["input_size"][-1])


def set_image_size(model: nn.Module, config: ImageEncoderConfig, flag: str) -> tuple[int, tuple[int, int]]:
    """Bring a ViT to ``config.image_size`` and return its side in pixels and its grid."""
    assert isinstance(model, PlainViT)
    if isinstance(model, Data2Vec2Image):
        size, grid = model.img_size, (model.grid, model.grid)
    else:
        height, width = model.patch_embed.img_size
        if height != width:
            raise ConfigError(f"{config.name} takes {height} x {width} pixels; only squares are supported")
        size, grid = int(height), tuple(model.patch_embed.grid_size)
    if config.image_size is None or config.image_size == size:
        return size, grid
    patch = size // grid[0]
    if config.image_size % patch:
        raise ConfigError(
            f"{flag}.image-size {config.image_size} is not a multiple of the patch size {patch}"
        )
    model.set_input_size(config.image_size)
    return config.image_size, (config.image_size // patch, config.image_size // patch)


def _pretrained(config: ImageEncoderConfig, depth: int | None, flag: str) -> official.Official:
    if config.weights != "hub":
        return official.image_weights(read_weights(config.weights), depth)
    if config.name in official.URLS:
        return official.image_weights(read_weights(official.download(config.name)), depth)
    try:
        model = timm.create_model(config.name, pretrained=True, **config.timm_kwargs)
    except Exception as error:  # timm lets through whatever its download back end raises
        raise WeightsError(
            f"{config.name}: cannot fetch timm's weights ({type(error).__name__}: {error}); give the path of "
            f"a downloaded file as {flag}.weights, or 'none' for random ones"
        ) from error
    return official.image_weights(model.state_dict(), depth)


def _cut(model: VisionTransformer | Beit | Data2Vec2Image, config: ImageEncoderConfig, flag: str) -> None:
    if config.depth is not None:
        if config.depth > len(model.blocks):
            raise ConfigError(
                f"{flag}.depth {config.depth}: {config.name} has only {len(model.blocks)} blocks"
            )
        model.blocks = model.blocks[: config.depth]
    if not isinstance(model, Data2Vec2Image):  # its norm is the one before the blocks
        model.norm = nn.Identity()
        model.fc_norm = nn.Identity()


def _freeze_lower(model: nn.Module, config: ImageEncoderConfig, flag: str) -> None:
    """Takes what comes before the blocks, and the first of them, out of training."""
    count = config.freeze_blocks
    if not count:
        return
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        raise ConfigError(
            f"{flag}.freeze-blocks {count}: {config.name} is no sequence of blocks; leave the flag out, or freeze all "
            f"of it: {flag}.frozen"
        )
    if count > len(blocks):
        raise ConfigError(f"{flag}.freeze-blocks {count}: {config.name} has only {len(blocks)} blocks here")
    if isinstance(model, PlainViT):
        below = {id(parameter) for parameter in model.parameters()}
        below -= {id(parameter) for block in blocks for parameter in block.parameters()}
    else:
        below = set()
        for name, part in model.named_children():
            if name == "blocks":
                break
            below |= {id(parameter) for parameter in part.parameters()}
    below |= {id(parameter) for block in blocks[:count] for parameter in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) in below:
            parameter.requires_grad_(False)


def _superfluous(model: nn.Module) -> dict[str, str]:
    """Reasons for the ends that a model has no place for: final norm, head."""
    if isinstance(model, Data2Vec2Image):
        return {}
    own = model.state_dict()
    settings: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    classifier = settings.get("classifier") or "head"
    ends = dict.fromkeys([classifier] if isinstance(classifier, str) else classifier, "classification head")
    if isinstance(model, PlainViT):
        ends |= {
            "norm": "final norm, tokens are taken before it",
            "fc_norm": "final norm, tokens are taken before it",
            "attn_pool": "pooling head",
        }
    missing = {name: why for name, why in ends.items() if not any(key.startswith(f"{name}.") for key in own)}
    return {rf"{re.escape(name)}\.": why for name, why in missing.items()}


def _probe_map(
    model: nn.Module, size: int, map_format: str, config: ImageEncoderConfig
) -> tuple[int, tuple[int, int]]:
    """Width and grid of a model's map, measured: timm has no reliable formula for every padding."""
    model.eval()
    with torch.no_grad():
        probe = model(torch.zeros(1, 3, size, size))
    if not isinstance(probe, Tensor) or probe.ndim != 4:
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
        raise ConfigError(
            f"{config.name} gives {shape} instead of a spatial map; use a ViT, BEiT or a conv net"
        )
    if map_format == "NHWC":
        return probe.shape[3], (probe.shape[1], probe.shape[2])
    return probe.shape[1], (probe.shape[2], probe.shape[3])
