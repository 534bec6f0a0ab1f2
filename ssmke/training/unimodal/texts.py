"""Text distillation, from recipe to result: some layers of a language model learn what all of them predict."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ssmke.data.order import EpochOrder
from ssmke.data.stream import StreamPlan
from ssmke.errors import DataError
from ssmke.models.text_encoders import load_tokenizer
from ssmke.objectives.gather import rank, world_size
from ssmke.training.compute import DTYPES
from ssmke.training.loop import Outcome
from ssmke.training.prepare import render_scenes
from ssmke.training.ranks import Placement, on_all_ranks, on_rank_zero
from ssmke.training.session import Session, hold
from ssmke.training.unimodal.corpus import Corpus, build, cache_folder, pieces_of
from ssmke.training.unimodal.head import FILE, fit_head, load_head
from ssmke.training.unimodal.masked_lm import MaskedLM, build_student, build_teacher, save_student
from ssmke.training.unimodal.recipes import TextDistillation
from ssmke.training.unimodal.run import Distillation, Scores, distil
from ssmke.training.unimodal.soft_targets import SoftTargetDistillation
from ssmke.training.unimodal.text_batches import IGNORED, Masking, TextBatches, masked_rows

MEASURED = 2_048
"""Most rows that are held out."""
CHUNK = 16


def distil_texts(recipe: TextDistillation, deepspeed_config: str, placement: Placement) -> Outcome:
    """Runs ``recipe`` on all ranks (the process group must exist); see `session.hold`."""
    return hold(recipe, deepspeed_config, placement, lambda session: _run(recipe, session))


def _run(recipe: TextDistillation, session: Session) -> Outcome:
    text, depth = recipe.model.text, recipe.model.text.depth
    assert depth is not None
    with session.phase("setup"):
        torch.manual_seed(recipe.seed)
        teacher, report, headed = build_teacher(text)
        session.say(f"teacher {text.name}, whole: {report}")
        tokenizer = load_tokenizer(text, teacher.vocabulary)
    with session.phase("target_cache"):
        corpus = open_corpus(recipe, session)
    with session.phase("setup"):
        held_out = min(MEASURED, max(1, round(recipe.data.held_out * corpus.rows)))
        trained = corpus.rows - held_out
        if trained < 1:
            raise DataError(f"the corpus has {corpus.rows} rows of {text.max_tokens} tokens: give more text")
        session.say(
            f"corpus: {corpus.documents:,} documents, {corpus.rows:,} rows of {text.max_tokens} tokens, {held_out:,} "
            "of them held out"
        )
        special = tuple(
            int(number)
            for number in {
                tokenizer.pad_token_id,
                tokenizer.cls_token_id,
                tokenizer.sep_token_id,
                tokenizer.mask_token_id,
            }
        )
        masking = Masking(
            recipe.seed, recipe.distil.masked, special, int(tokenizer.mask_token_id), len(tokenizer)
        )
        plan = StreamPlan(
            EpochOrder.once(trained, recipe.seed),
            recipe.optim.batch_size,
            recipe.optim.epochs,
            rank(),
            world_size(),
            unit="rows",
        )
        teacher.to(session.device)
        if not headed and (recipe.distil.soft or recipe.distil.mlm):
            _give_head(recipe, session, teacher, corpus, masking, trained)
        student = build_student(teacher, depth, recipe.distil)
        millions = sum(p.numel() for p in student.parameters()) / 1e6
        session.say(f"student: {depth} layers, {millions:.2f}M parameters with the head of masked words")
        module = SoftTargetDistillation(
            student.to(session.device), teacher, recipe.distil, masking.count(text.max_tokens)
        )
        teacher.to(DTYPES[session.engine_config.dtype])

    def save(folder: Path, state: dict[str, Tensor]) -> None:
        save_student(folder, student, state, tokenizer)

    made = Distillation(
        module,
        TextBatches(corpus, plan, masking),
        recipe.data.stream,
        corpus.digest,
        lambda whole: measure(whole, teacher, corpus, masking, trained),
        save,
        "--model.text.weights",
    )
    return distil(recipe, session, made)


def open_corpus(recipe: TextDistillation, session: Session) -> Corpus:
    """The tokenised corpus, after the ranks have made what is missing (collective).

    Raises:
        DataError: there are no texts, ranks see different ones, or one of them does not see the cache.
    """
    text, data = recipe.model.text, recipe.data
    if data.make == "scenes":
        on_rank_zero(lambda: render_scenes(data.shards[0], session.say))
    tokenizer = load_tokenizer(text)

    def made() -> str:
        pieces = pieces_of(data)
        folder = cache_folder(data, pieces, tokenizer, text.max_tokens)
        build(
            folder,
            pieces,
            tokenizer,
            text.max_tokens,
            (rank(), world_size()),
            session.say,
            session.control.check,
        )
        return f"{len(pieces)} {folder.name}"

    found = on_all_ranks(made)
    other = next((number for number, name in enumerate(found) if name != found[0]), None)
    if other is not None:
        raise DataError(
            f"rank {other} sees other texts than rank 0: every node needs the same files under the same path"
        )
    pieces, name = found[0].split()

    def opened() -> Corpus:
        try:
            return Corpus(Path(data.cache) / name, int(pieces))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{Path(data.cache) / name} is not whole here ({error}): --data.cache must be a folder that all nodes "
                "share; if it is, delete that folder"
            ) from None

    corpus: list[Corpus] = []
    on_all_ranks(lambda: corpus.append(opened()))
    return corpus[0]


def _give_head(
    recipe: TextDistillation,
    session: Session,
    teacher: MaskedLM,
    corpus: Corpus,
    masking: Masking,
    trained: int,
) -> None:
    file, steps = session.run.path / FILE, recipe.distil.head_steps

    def fitted() -> None:
        if file.exists():
            return
        session.say(f"the teacher was saved without its head of masked words: fitting one, {steps} steps")
        share = fit_head(
            teacher, corpus, masking, trained, steps, file, session.device, session.control.check
        )
        session.say(f"the head knows {100 * share:.1f} % of the masked words")

    on_rank_zero(fitted)
    load_head(teacher, file)


@torch.no_grad()
def measure(
    module: SoftTargetDistillation, teacher: MaskedLM, corpus: Corpus, masking: Masking, trained: int
) -> Scores:
    """On the held-out rows, shared out among the ranks (collective): every loss, and masked words that are right."""
    device = next(module.parameters()).device
    numbers = list(range(trained + rank(), corpus.rows, world_size()))
    sums: dict[str, Tensor] = {}
    names = [name for name in ("soft", "cosine", "mlm") if getattr(module.config, name)]
    keys = [*names, "right", "teacher_right", "rows"]
    total = torch.zeros(len(keys), dtype=torch.float64, device=device)
    for start in range(0, len(numbers), CHUNK):
        batch = masked_rows(corpus, masking, numbers[start : start + CHUNK], epoch=0).to(device)
        assert batch.labels is not None
        sums = module(batch)
        chosen = batch.labels != IGNORED
        right = [
            (model.logits(model(batch.ids)[chosen]).argmax(-1) == batch.labels[chosen]).float().mean()
            for model in (module.student, teacher)
        ]
        values = [*(sums[name] for name in names), *right, torch.ones((), device=device)]
        total += len(batch) * torch.stack([value.double() for value in values])
    if world_size() > 1:
        dist.all_reduce(total)
    means = (total[:-1] / total[-1]).tolist()
    return dict(zip(keys[:-1], means, strict=True))
