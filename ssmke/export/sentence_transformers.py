"""Our model as the one module of a `SentenceTransformer`, which embeds texts and pictures into one space.

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("DIR", trust_remote_code=True)
    model.encode(["a red dog", "a kite high in the air"])
    model.encode(["kite.jpg", PIL_image])                  # a call takes texts or pictures, not both

sentence-transformers imports a module class that is not its own only with ``trust_remote_code=True``, also from a
local folder and an installed package. The folder holds no code: what is imported is this file of the installed ssmke.
`load` needs no such flag. The embeddings are those of `SSMKE.encode_image` and `encode_text`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssmke.data.atomic import write_json
from ssmke.errors import ConfigError, DataError, WeightsError
from ssmke.export.output import new_output
from ssmke.models.student import SSMKE

if importlib.util.find_spec("sentence_transformers") is None:
    raise ConfigError("this needs sentence-transformers: pip install 'ssmke[sentence-transformers]'")

import sentence_transformers
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import is_image_url_or_path
from sentence_transformers.base.modules import InputModule

TOLERANCE = 1e-5
"""Largest absolute difference of a coordinate from our own embeddings."""
CHECK_TEXTS = ("a red circle", "three small blue stars beside a large green square", "")


class StudentModule(InputModule):
    """`SSMKE` behind sentence-transformers' interface; a batch holds texts or pictures."""

    def __init__(self, model: SSMKE) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.processor().tokenizer

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image"]

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens; longer ones are cut."""
        return self.model.config.text.max_tokens

    def get_embedding_dimension(self) -> int:
        """Width of the embedding."""
        return self.model.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tensors of texts, or of pictures (PIL images, files, uint8 arrays); {"text": ...}, {"image": ...} do too."""
        kinds, values = zip(*map(_kind, inputs), strict=True)
        if len(set(kinds)) > 1:
            raise DataError("a batch holds texts or pictures: encode them in two calls")
        if kinds[0] == "image":
            return {"images": self.model.processor().images(values)}
        ids, mask = self.model.processor().texts([f"{prompt or ''}{text}" for text in values])
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds "sentence_embedding" [B, D], L2-normalised."""
        outputs = self.model(
            features.get("images"), features.get("input_ids"), features.get("attention_mask")
        )
        output = outputs["image.output" if "images" in features else "text.output"]
        features["sentence_embedding"] = F.normalize(output.float(), dim=-1)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the model folder's files into ``output_path``."""
        from ssmke.models import pretrained

        pretrained.write_into(self.model, Path(output_path), self.model.state_dict())

    @classmethod
    def load(cls, model_name_or_path: str, revision: str | None = None, **kwargs: Any) -> StudentModule:
        """The module of a folder, or of a repository on the hub."""
        remote = not os.path.isdir(model_name_or_path)  # noqa: PTH112 - the name of a repository is no path
        return cls(
            SSMKE.from_pretrained(
                f"{model_name_or_path}@{revision}" if remote and revision else model_name_or_path
            )
        )


def _kind(given: Any) -> tuple[str, Any]:
    if isinstance(given, dict) and len(given) == 1 and next(iter(given)) in ("text", "image"):
        return next(iter(given.items()))
    return ("text" if isinstance(given, str) and not is_image_url_or_path(given) else "image"), given


def load(source: str | Path) -> SentenceTransformer:
    """The exported (or any) model folder, or a name on the hub, as a `SentenceTransformer`."""
    return SentenceTransformer(modules=[StudentModule(SSMKE.from_pretrained(source))])


def export_sentence_transformers(model: SSMKE, out: Path, card: str) -> float:
    """Writes the new folder ``out``, if sentence-transformers loads it and gives our embeddings.

    Returns:
        The largest absolute difference of a coordinate.

    Raises:
        WeightsError: it gives others; nothing is kept.
        ConfigError, DataError: ``out`` is not empty, or cannot be written.
    """
    from ssmke.data.sources.scene_plan import plan_scenes
    from ssmke.data.sources.scene_render import render_scene

    with new_output(out) as folder:
        model.save_pretrained(folder)
        name = f"{StudentModule.__module__}.{StudentModule.__name__}"
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": name}])
        write_json(
            folder / "config_sentence_transformers.json",
            {
                "__version__": {"sentence_transformers": sentence_transformers.__version__},
                "model_type": "SentenceTransformer",
                "prompts": {},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        texts = list(CHECK_TEXTS)
        pictures = [render_scene(scene, 2 * model.image_size) for scene in plan_scenes(0, "test", 3)]
        loaded = load(folder)
        theirs = torch.cat(
            [loaded.encode(given, convert_to_tensor=True).cpu() for given in (texts, pictures)]
        )
        ours = torch.cat([model.encode_text(texts).cpu(), model.encode_image(pictures).cpu()])
        found = float((theirs - ours).abs().max())
        if not found <= TOLERANCE:
            raise WeightsError(
                f"sentence-transformers gives other embeddings (by {found:.2g}): nothing was kept"
            )
    return found
