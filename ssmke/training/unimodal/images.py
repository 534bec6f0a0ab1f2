"""Image distillation, from recipe to result: the first blocks of a ViT learn what all of them compute."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ssmke.data.dataset import ImageTextShards
from ssmke.data.shards import keys_digest
from ssmke.data.stream import StreamPlan
from ssmke.objectives.gather import rank, world_size
from ssmke.training.compute import DTYPES
from ssmke.training.loop import Outcome
from ssmke.training.prepare import epoch_order, open_evaluation, open_shards
from ssmke.training.ranks import Placement
from ssmke.training.session import Session, hold
from ssmke.training.unimodal.blocks import BlockDistillation, build_pair
from ssmke.training.unimodal.encoder_folder import save_image_encoder
from ssmke.training.unimodal.image_batches import ImageBatches, canonical_images
from ssmke.training.unimodal.recipes import ImageDistillation
from ssmke.training.unimodal.run import Distillation, Scores, distil

MEASURED = 2_000
"""Images of the evaluation split, from its beginning, that are measured on."""
CHUNK = 32


def distil_images(recipe: ImageDistillation, deepspeed_config: str, placement: Placement) -> Outcome:
    """Runs ``recipe`` on all ranks (the process group must exist); see `session.hold`."""
    return hold(recipe, deepspeed_config, placement, lambda session: _run(recipe, session))


def _run(recipe: ImageDistillation, session: Session) -> Outcome:
    with session.phase("setup"):
        shards = open_shards(recipe, session.say)
        held_out = open_evaluation(recipe)
        plan = StreamPlan(
            epoch_order(recipe, shards, images=True),
            recipe.optim.batch_size,
            recipe.optim.epochs,
            rank(),
            world_size(),
            unit="images",
        )
        torch.manual_seed(recipe.seed)
        image = recipe.model.image
        student, teacher = build_pair(image, recipe.distil)
        session.say(f"teacher {image.name}, whole: {teacher.load_report}")
        millions = sum(p.numel() for p in student.parameters()) / 1e6
        module = BlockDistillation(student.to(session.device), teacher.to(session.device), recipe.distil)
        teacher.to(DTYPES[session.engine_config.dtype])
        matched = ", ".join(f"{here + 1} <- {there + 1}" for here, there in module.pairs)
        session.say(f"student: {image.depth} blocks, {millions:.2f}M parameters; learns blocks {matched}")
        batches = ImageBatches(shards, plan, student.image_size, recipe.data.augmentation)

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        save_image_encoder(folder, image, state)

    made = Distillation(
        module,
        batches,
        recipe.data.stream,
        keys_digest(info.sha256 for _, info, _ in shards.shards),
        lambda whole: measure(whole, held_out),
        save,
        "--model.image.weights",
    )
    return distil(recipe, session, made)


@torch.no_grad()
def measure(module: BlockDistillation, shards: ImageTextShards) -> Scores:
    """Mean squared error of each matched block, and the mean cosine of the last one's tokens (collective).

    Canonical views of the first `MEASURED` images, shared out among the ranks.
    """
    device = next(module.parameters()).device
    sums = torch.zeros(len(module.pairs) + 2, dtype=torch.float64, device=device)
    numbers = list(range(rank(), min(shards.images, MEASURED), world_size()))
    for start in range(0, len(numbers), CHUNK):
        batch = canonical_images(shards, numbers[start : start + CHUNK], module.student.image_size)
        if not len(batch):
            continue
        own, theirs = module.outputs(batch.images.to(device))
        errors = [F.mse_loss(a.float(), b.float()) for a, b in zip(own, theirs, strict=True)]
        cosine = F.cosine_similarity(own[-1].float(), theirs[-1].float(), dim=-1).mean()
        sums += len(batch) * torch.stack([*errors, cosine, torch.ones_like(cosine)]).double()
    if world_size() > 1:
        dist.all_reduce(sums)
    *errors, cosine = (sums[:-1] / sums[-1]).tolist()
    by_block = {f"mse.{here + 1}": value for (here, _), value in zip(module.pairs, errors, strict=True)}
    return {"mse": sum(errors) / len(errors), **by_block, "cosine": cosine}
