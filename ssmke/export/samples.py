"""Pictures and captions on which an export is compared with the model that it was made of.

Drawn scenes and their captions, which have edges, areas and words as real input has, and random pixels and token
ids, which reach what real input seldom does. They come with the package, so that a check needs no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmke.data.sources.scene_captions import write_captions
from ssmke.data.sources.scene_plan import plan_scenes
from ssmke.data.sources.scene_render import render_scene
from ssmke.models.student import SSMKE

SCENES = 5
"""Neither one nor the batch that a graph is traced with."""


@dataclass(frozen=True)
class Samples:
    """Input of one kind."""

    kind: str
    """What messages call it."""
    images: Tensor
    """uint8 [B,3,S,S]."""
    ids: Tensor
    """int64 [T,L]."""
    mask: Tensor
    """bool [T,L]."""


def check_samples(model: SSMKE, seed: int = 0) -> list[Samples]:
    """Drawn scenes, random input, and a single picture and text, for ``model``."""
    scenes = plan_scenes(seed, "test", SCENES)
    processor, side = model.processor(), model.image_size
    drawn = processor.images([render_scene(scene, max(64, side)) for scene in scenes])
    ids, mask = processor.texts([caption for scene in scenes for caption in write_captions(scene, 2)])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (SCENES - 2, 3, side, side), dtype=torch.uint8, generator=generator)
    longest = model.config.text.max_tokens
    tokens = torch.randint(0, model.text_encoder.vocab_size, (4, longest), generator=generator)
    lengths = torch.tensor([longest, longest - 1, longest // 2, 2]).clamp(min=1)
    random = Samples("random input", noise, tokens, torch.arange(longest) < lengths[:, None])
    return [
        Samples("drawn scenes and captions", drawn, ids, mask),
        random,
        Samples("one picture and one caption", drawn[:1], ids[:1, : int(mask[0].sum())], mask[:1, mask[0]]),
    ]
