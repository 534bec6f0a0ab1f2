"""Self-supervised ViT of the embedded default: learned from unlabelled pixels, never from captions or the generator.

The method is bags of visual words (Gidaris et al. 2020, BoWNet) with per-patch words as in BEiT (Bao et al. 2021),
chosen because it is what one CPU core can train to know WHAT is WHERE in ten minutes; measured here with the same
core time, contrastive learning (SimCLR) of a ViT found little more than colours. Step by step:

1. Saliency by the boundary prior (Zhu et al. 2014): a pixel unlike every pixel of the image's border is foreground.
2. Foreground colours are clustered (k-means over all images); equal neighbours form components.
3. Component outlines, scaled to 12 x 12, are clustered too. A component's visual word is (colour cluster, outline
   cluster). Scenes are flat shapes, so the words come out nearly pure; photos would need a learned tokenizer.
4. The ViT predicts, from [CLS] (last block, before any norm): the bag of words, the words of each ninth of the
   image, and a 4 x 4 thumbnail; from every patch token: the words that touch the patch.

The teacher is the whole ViT; the student's image encoder is its first half, as S-SMKE does with BEiTv2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import ndimage  # type: ignore[import-untyped]
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssmke.data.sources.scene_plan import plan_scenes
from ssmke.data.sources.scene_render import render_scene

SIDE, PATCH = 64, 16
COLOUR_WORDS, OUTLINE_WORDS = 14, 24
TIMM_KWARGS = {"img_size": SIDE, "embed_dim": 128, "depth": 6, "num_heads": 4}
"""Architecture as arguments of timm's vit_tiny_patch16_224."""
NINTHS, PATCHES = 9, (SIDE // PATCH) ** 2


@dataclass(frozen=True)
class Words:
    """What each image holds in visual words, as distributions that sum to one over the last dimension."""

    bag: Tensor
    """Words of the whole image, [N, colours x outlines]."""
    colours: Tensor
    """Colour words by ninth and by patch, the last word meaning nothing: [N, 9 + patches, colours + 1]."""
    outlines: Tensor
    """Outline words likewise, [N, 9 + patches, outlines + 1]."""


def unlabelled_images(seed: int, count: int) -> Tensor:
    """Train-split scenes of a seed without captions, uint8 [N, 3, 64, 64]."""
    images = [np.asarray(render_scene(scene, SIDE)) for scene in plan_scenes(seed, "train", count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def saliency(images: Tensor, threshold: float = 38.0) -> Tensor:
    """Foreground of uint8 [B, 3, S, S]: pixels further (RGB distance) from all border pixels, bool [B, S, S]."""
    x = images.float()
    border = torch.cat(
        [x[:, :, 0, ::2], x[:, :, -1, ::2], x[:, :, ::2, 0], x[:, :, ::2, -1]], 2
    )  # [B, 3, 2S]
    distance = torch.cdist(x.flatten(2).transpose(1, 2), border.transpose(1, 2))  # [B, S*S, 2S]
    return distance.min(2).values.view(len(x), *x.shape[2:]) > threshold


def kmeans(points: Tensor, clusters: int, rounds: int = 25) -> Tensor:
    """Centres [clusters, D] by k-means++ and Lloyd's rounds on points [N, D]."""
    centres = points[:1]
    for _ in range(clusters - 1):
        nearest = torch.cdist(points, centres).min(1).values ** 2
        centres = torch.cat([centres, points[torch.multinomial(nearest, 1)]])
    for _ in range(rounds):
        owner = torch.cdist(points, centres).argmin(1)
        for cluster in range(clusters):
            if (owner == cluster).any():
                centres[cluster] = points[owner == cluster].mean(0)
    return centres


@dataclass(frozen=True)
class Component:
    """A connected region of one colour word."""

    image: int
    colour: int
    rows: slice
    columns: slice
    outline: Tensor  # [144], its mask scaled to 12 x 12


def components(images: Tensor, foreground: Tensor, palette: Tensor) -> list[Component]:
    """Regions of at least 24 pixels and no extreme proportions (those are leftovers of antialiased edges)."""
    found: list[Component] = []
    for number in range(len(images)):
        inside = foreground[number].numpy()
        if not inside.any():
            continue
        words = np.full(inside.shape, -1)
        pixels = images[number].permute(1, 2, 0)[foreground[number]].float()
        words[inside] = torch.cdist(pixels, palette).argmin(1).numpy()
        for colour in np.unique(words[inside]).tolist():
            regions, _ = ndimage.label(words == colour, np.ones((3, 3)))
            areas = np.bincount(regions.ravel())
            for label, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
                short, long = sorted((rows.stop - rows.start, columns.stop - columns.start))
                if areas[label] < 24 or short < 5 or long > 2.2 * short:
                    continue
                mask = torch.from_numpy((regions[rows, columns] == label).astype(np.float32))
                outline = F.interpolate(
                    mask[None, None], (12, 12), mode="bilinear", align_corners=False
                ).flatten()
                found.append(Component(number, colour, rows, columns, outline))
    return found


def visual_words(images: Tensor) -> Words:
    """Discovers the vocabulary in uint8 images [N, 3, 64, 64] and describes each image in it."""
    foreground = torch.cat([saliency(batch) for batch in images.split(64)])
    sample = torch.cat(
        [images[i].permute(1, 2, 0)[foreground[i]] for i in range(min(len(images), 2000))]
    ).float()
    palette = kmeans(sample[torch.randperm(len(sample))[:20_000]], COLOUR_WORDS)
    found = components(images, foreground, palette)
    outlines = torch.stack([component.outline for component in found])
    shapes = kmeans(outlines[torch.randperm(len(outlines))[:10_000]], OUTLINE_WORDS)
    nearest = torch.cdist(outlines, shapes).argmin(1).tolist()

    bag = torch.zeros(len(images), COLOUR_WORDS * OUTLINE_WORDS)
    cells = NINTHS + PATCHES
    colours = torch.zeros(len(images), cells, COLOUR_WORDS + 1)
    shapes_at = torch.zeros(len(images), cells, OUTLINE_WORDS + 1)
    for component, shape in zip(found, nearest, strict=True):
        i, rows, columns = component.image, component.rows, component.columns
        bag[i, component.colour * OUTLINE_WORDS + shape] += 1
        third = [min(2, (edge.start + edge.stop) * 3 // (2 * SIDE)) for edge in (rows, columns)]
        touched = [third[0] * 3 + third[1]]
        for row in range(rows.start // PATCH, (rows.stop - 1) // PATCH + 1):
            for column in range(columns.start // PATCH, (columns.stop - 1) // PATCH + 1):
                touched.append(NINTHS + row * (SIDE // PATCH) + column)
        for cell in touched:
            colours[i, cell, component.colour] += 1
            shapes_at[i, cell, shape] += 1
    for at in (colours, shapes_at):
        at[..., -1] = (at.sum(-1) == 0).float()
        at /= at.sum(-1, keepdim=True)
    return Words(bag / bag.sum(1, keepdim=True).clamp(min=1), colours, shapes_at)


def build_vit() -> VisionTransformer:
    """The ViT; Xavier weights and visible positions, as timm's std of 0.02 is far too small for width 128."""
    vit = VisionTransformer(patch_size=PATCH, num_classes=0, **TIMM_KWARGS)
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(vit.embed_dim, -1))
    nn.init.normal_(vit.pos_embed, std=0.3)
    nn.init.normal_(vit.cls_token, std=0.3)
    vit.norm = nn.Identity()  # targets and tokens are taken before it
    return vit


def pretrain_vit(
    images: Tensor, words: Words, steps: int, batch: int = 64, lr: float = 1.2e-3
) -> VisionTransformer:
    """Predicts visual words; AdamW, one cycle, colour and pixel noise as the only augmentation."""
    vit = build_vit()
    dim = vit.embed_dim
    heads = nn.ModuleDict(
        {
            "bag": nn.Linear(dim, words.bag.shape[1]),
            "ninths": nn.Linear(dim, NINTHS * (COLOUR_WORDS + OUTLINE_WORDS + 2)),
            "thumbnail": nn.Linear(dim, 3 * PATCHES),
            "patch": nn.Linear(dim, COLOUR_WORDS + OUTLINE_WORDS + 2),
        }
    )
    norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
    parameters = [*vit.parameters(), *heads.parameters(), *norms.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.505 + 0.5 * math.cos(math.pi * s / steps))
    )
    split = (COLOUR_WORDS + 1, OUTLINE_WORDS + 1)
    for step in range(steps):
        rows = torch.randint(len(images), (batch,))
        pixels = images[rows].float() / 127.5 - 1
        tokens = vit.forward_features(_noisy(pixels))  # [B, 17, D]
        cls, patches = norms[0](tokens[:, 0]), norms[1](tokens[:, 1:])
        losses = {"bag": _soft(heads["bag"](cls), words.bag[rows])}
        predictions = torch.cat([heads["ninths"](cls).view(batch, NINTHS, -1), heads["patch"](patches)], 1)
        colour, outline = predictions.split(split, -1)
        losses["colours"] = _soft(colour, words.colours[rows])
        losses["outlines"] = _soft(outline, words.outlines[rows])
        thumbnail = F.avg_pool2d(pixels, PATCH).flatten(1)
        losses["thumbnail"] = F.l1_loss(heads["thumbnail"](cls), thumbnail)
        loss = losses["bag"] + 3 * losses["colours"] + 4 * losses["outlines"] + losses["thumbnail"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            told = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"image encoder: step {step + 1} of {steps}, {told}", flush=True)
    return vit.eval()


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


def _noisy(pixels: Tensor) -> Tensor:
    """Brightness, tint and grain; nothing that moves or recolours a thing beyond recognition."""
    shape = (len(pixels), 1, 1, 1)
    grain = 0.06 * torch.rand(shape) * torch.randn_like(pixels)
    return pixels * (0.95 + 0.1 * torch.rand(shape)) + 0.03 * torch.randn(len(pixels), 3, 1, 1) + grain


def save_vit(path: Path, vit: VisionTransformer) -> None:
    """The ViT's weights as safetensors, readable by all."""
    state = {name: value.contiguous() for name, value in vit.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)
