"""Other people's image-text models as `DualEncoder`: open_clip's and those of transformers.

Each keeps its own preprocessing, tokenizer, padding and normalisation, as its library sets them up, so that what a
suite reports for a peer is what its authors would report on the same data. All compute in fp32: slower than they
might be, and free of the question whether a difference is one of rounding.

Nothing is unpickled: open_clip's torch files go through torch's restricted unpickler (``weights_only``), transformers
loads safetensors only, and code that comes with a hub's model is never run. A hub is asked only for a name that is
no local file or folder. Random weights must be asked for (``open_clip:ViT-B-32/random``), always are the same, and are
said aloud.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.weights import first_line, weights_digest

if TYPE_CHECKING:
    from ssmke.models.dual_encoder import DualEncoder

RANDOM = "random"
_OWN_WEIGHTS = (
    "hf-hub:",
    "local-dir:",
)  # schemas of open_clip whose names stand for architecture and weights

_log = logging.getLogger(__name__)


class OpenClip:
    """A model of open_clip as a `DualEncoder`."""

    def __init__(
        self,
        model: torch.nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        name: str,
    ) -> None:
        self.model: Any = model.eval()
        self.name = name
        self.digest = weights_digest(model)
        self._transform = transform
        self._tokenizer = tokenizer
        self._device = next(model.parameters()).device
        self.dim = self.encode_text(["a"]).shape[1]

    def preprocess(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """open_clip's evaluation transform, float32 [3, S, S], normalised."""
        pixels: npt.NDArray[np.float32] = self._transform(image).numpy()
        return pixels

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """See `DualEncoder`."""
        return F.normalize(self.model.encode_image(pixels.to(self._device)).float(), dim=-1).cpu()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `DualEncoder`."""
        ids = self._tokenizer(list(texts)).to(self._device)  # [T, context]
        return F.normalize(self.model.encode_text(ids).float(), dim=-1).cpu()


class Transformers:
    """A model of transformers with `get_image_features` and `get_text_features` as a `DualEncoder`."""

    def __init__(self, model: torch.nn.Module, image_processor: Any, tokenizer: Any, name: str) -> None:
        self.model: Any = model.eval()
        self.name = name
        self.digest = weights_digest(model)
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self._device = next(model.parameters()).device
        config: Any = model.config
        text = getattr(config, "text_config", config)
        self._max_tokens = int(getattr(text, "max_position_embeddings", 77))
        # SigLIP was trained on captions padded to the full length, and takes no mask.
        self._padding = "max_length" if config.model_type.startswith("siglip") else "longest"
        self.dim = self.encode_text(["a"]).shape[1]

    def preprocess(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The model's own image processor, float32 [3, S, S], normalised."""
        pixels = self._image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return np.asarray(pixels, dtype=np.float32)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """See `DualEncoder`."""
        return _embedding(self.model.get_image_features(pixel_values=pixels.to(self._device)))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `DualEncoder`."""
        tokens = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        return _embedding(self.model.get_text_features(**tokens.to(self._device)))


def _embedding(output: Any) -> Tensor:
    """Since transformers 5 the projected embedding is the pooler output; before, it was all that was returned."""
    embedding: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(embedding.float(), dim=-1).cpu()


def load(library: str, rest: str, device: torch.device) -> DualEncoder:
    """The peer that ``library:rest`` names, on ``device``.

    ``open_clip:ARCH/PRETRAINED`` (a tag of `open_clip.list_pretrained`, a local file, or ``random``),
    ``open_clip:hf-hub:ORG/NAME``, ``open_clip:local-dir:FOLDER``, ``transformers:NAME_OR_FOLDER``.

    Raises:
        ConfigError: the library is not installed, or does not know the architecture.
        WeightsError: there are no such weights, or they cannot be read without unpickling.
    """
    if not rest:
        example = (
            "open_clip:ViT-B-32/openai"
            if library == "open_clip"
            else "transformers:openai/clip-vit-base-patch32"
        )
        raise ConfigError(f"{library}: names no model; for example {example}")
    return _open_clip(rest, device) if library == "open_clip" else _transformers(rest, device)


def _open_clip(rest: str, device: torch.device) -> OpenClip:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            f"open_clip:{rest} needs open_clip ({error}): pip install open-clip-torch, or ssmke[peers]"
        ) from None
    name = f"open_clip:{rest}"
    if rest.startswith(_OWN_WEIGHTS):
        architecture, pretrained = rest, None
    else:
        architecture, _, pretrained = rest.partition("/")
        pretrained = _checked_weights(open_clip, architecture, pretrained)
    random = pretrained == RANDOM
    # Of weights that were trained with another activation than the architecture's open_clip only warns.
    quick_gelu = False
    if pretrained is not None and not random:
        trained_with = open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu", False)
        quick_gelu = trained_with and not open_clip.get_model_config(architecture).get("quick_gelu", False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _, transform = open_clip.create_model_and_transforms(
                architecture,
                pretrained=None if random else pretrained,
                load_weights=not random,
                require_pretrained=not random,
                pretrained_text=not random,
                weights_only=True,
                force_quick_gelu=quick_gelu,
                device=device,
            )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, its hub and torch raise of all kinds
        raise WeightsError(
            f"{name}: cannot be loaded ({type(error).__name__}: {first_line(error)}): check the name or file, which "
            "must be safetensors or hold tensors only"
        ) from error
    if random:
        _log.warning("%s: RANDOM weights, as asked for: its numbers say nothing about the architecture", name)
    return OpenClip(model, transform, tokenizer, name)


def _checked_weights(open_clip: Any, architecture: str, pretrained: str) -> str:
    """The weights asked for, or an error that names those that there are."""
    known = open_clip.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigError(
            f"open_clip:{architecture}: open_clip has no such architecture{hint} (see open_clip.list_models())"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained == RANDOM or pretrained in tags or Path(pretrained).is_file():
        return pretrained
    choice = f"open_clip:{architecture}/PRETRAINED with a local file, {RANDOM}" + (
        f", or one of: {', '.join(tags)}" if tags else " (open_clip knows no weights of this architecture)"
    )
    problem = f"{pretrained!r} is no tag of it and no file" if pretrained else "names no weights"
    raise WeightsError(f"open_clip:{architecture}: {problem}; give {choice}")


def _transformers(rest: str, device: torch.device) -> Transformers:
    import transformers

    name = f"transformers:{rest}"
    folder = Path(rest).expanduser()
    local = folder.is_dir()
    if not local and (rest.startswith(("/", ".", "~")) or rest.count("/") > 1):
        raise WeightsError(f"{name}: there is no such folder, and a hub name looks like ORG/NAME")
    options = {"trust_remote_code": False, "local_files_only": local}
    try:
        source = str(folder) if local else rest
        # Since transformers 5 the default is the precision of the file.
        model = transformers.AutoModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, **options
        )
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ConfigError(
                f"{name}: a {type(model).__name__} does not embed images and texts in one space; give a CLIP, a SigLIP "
                "or another with get_image_features and get_text_features"
            )
        processor = transformers.AutoProcessor.from_pretrained(source, **options)
        parts = processor.image_processor, processor.tokenizer
    except ConfigError:
        raise
    except Exception as error:  # transformers, its hub and safetensors raise of all kinds
        raise WeightsError(
            f"{name}: cannot be loaded ({type(error).__name__}: {first_line(error)}): give a hub name or a folder with "
            "config.json, model.safetensors, tokenizer and preprocessor"
        ) from error
    try:
        peer = Transformers(model.to(device), *parts, name)
        blank = torch.from_numpy(peer.preprocess(Image.new("RGB", (64, 64), "white")))
        shape = tuple(peer.encode_image(blank[None]).shape)
        if shape != (1, peer.dim):
            raise ValueError(f"the embedding of an image is {shape}, that of a text {(1, peer.dim)}")
    except Exception as error:  # models with inputs of their own raise of all kinds
        raise WeightsError(
            f"{name}: a {type(model).__name__} was loaded and cannot embed a blank image and a word "
            f"({type(error).__name__}: {first_line(error)}): give a model that takes images of one size as "
            "pixel_values alone, which those with NaFlex in their name do not"
        ) from error
    return peer
