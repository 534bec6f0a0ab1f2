"""Runs a suite over its seeds: reads, builds, finetunes, and gathers what the JSON and the table hold.

A model is loaded anew for each seed and task, because finetuning changes it. What can be wrong with the data is found
out before the first step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssmke.data.parallel import usual_workers
from ssmke.errors import ConfigError
from ssmke.evaluation.finetune.backbones import (
    load_image_features,
    load_pair_features,
    load_text_features,
    set_drop_path,
)
from ssmke.evaluation.finetune.config import GlueConfig, ImageClassificationConfig, Nlvr2Config, RunConfig
from ssmke.evaluation.finetune.glue import GlueFinetuning, TextClassifier, checked_tokens, glue_means
from ssmke.evaluation.finetune.glue_data import TASKS, GlueData, GlueTask, read_glue
from ssmke.evaluation.finetune.image_classification import ImageClassifier, ImageTask
from ssmke.evaluation.finetune.labelled_images import read_image_classes
from ssmke.evaluation.finetune.loop import Scores, finetune, seed_of
from ssmke.evaluation.finetune.nlvr2 import PairClassifier, PairTask
from ssmke.evaluation.finetune.nlvr2_data import read_nlvr2
from ssmke.evaluation.finetune.results import over_seeds
from ssmke.evaluation.finetune.text_batches import tokenize_texts
from ssmke.evaluation.intervals import aggregate
from ssmke.models.text_encoders import load_tokenizer
from ssmke.models.weights import weights_digest
from ssmke.words import counted

Say = Callable[[str], None]
CPU = torch.device("cpu")


def run_image_classification(
    config: ImageClassificationConfig, say: Say, device: torch.device = CPU
) -> dict[str, Any]:
    """Finetunes and evaluates on each seed; gives the content of the JSON."""
    started = time.perf_counter()
    data = read_image_classes(config.data, config.val_share, config.split_seed)
    say(
        f"{config.data}: {counted(len(data.names), 'class', 'classes')}, {data.train.images:,} training and "
        f"{data.val.images:,} evaluation images"
    )
    histories: dict[int, list[Scores]] = {}
    skipped: dict[str, Any] = {}
    for seed in config.run.seed:
        torch.manual_seed(seed_of("encoder", seed))  # for one with random weights
        features = load_image_features(
            config.model, config.part, config.pool, config.weights, config.image_size
        )
        digest = weights_digest(features)
        has_drop_path = not config.drop_path or set_drop_path(features.encoder, config.drop_path)
        if not has_drop_path:
            say("this encoder has no stochastic depth: --drop-path does nothing")
        torch.manual_seed(seed_of("head", seed))  # the same head, however its encoder was come by
        task = ImageTask(
            ImageClassifier(features, len(data.names)),
            data,
            config.augment,
            batch_size=config.loop.batch_size,
            seed=seed,
            workers=_workers(config.run),
            device=device,
        )
        identity = _identity("image-classification", config.identity(), digest, data.digest, seed)
        histories[seed] = finetune(
            task, config.loop, seed=seed, folder=_folder(config.run, seed), identity=identity, say=say
        )
        skipped[str(seed)] = {"train": dict(task.skipped.train), "val": dict(task.skipped.val)}
    classes = len(data.names)
    return {
        "task": "image-classification",
        "model": {"name": config.model, "part": config.part, "weights_sha256": digest},
        "data": {
            "path": str(config.data.resolve()),
            "sha256": data.digest,
            "classes": classes,
            "train": data.train.images,
            "val": data.val.images,
        },
        "config": config.identity(),
        "drop_path_applied": has_drop_path,
        "chance": {"top1": 100 / classes, "top5": min(100.0, 500 / classes)},
        **over_seeds(histories),
        "skipped": skipped,
        **_where(started, device),
    }


def run_glue(config: GlueConfig, say: Say, device: torch.device = CPU) -> dict[str, Any]:
    """Finetunes and evaluates on each task and seed; gives the content of the JSON.

    All tasks are read first, so that a damaged file of the last is found before hours went into the others; that
    holds some hundred megabytes of text, which go as their tasks end.
    """
    started = time.perf_counter()
    tasks = _chosen(config)
    read = {name: read_glue(config.data, task) for name, task in tasks.items()}
    features, _ = load_text_features(config.model, config.part)
    checked_tokens(features, config.max_tokens)
    del features
    histories: dict[str, dict[int, list[Scores]]] = {name: {} for name in tasks}
    skipped: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for name, task in tasks.items():
        data = read.pop(name)
        loop = config.loop(task.epochs, task.batch_size, task.lr)
        say(
            f"{name}: {len(data.train):,} training and {sum(map(len, data.dev.values())):,} evaluation examples, "
            f"{counted(loop.epochs, 'epoch')} of batches of {loop.batch_size} at lr {loop.lr:g}"
        )
        if data.skipped:
            say(f"{name}: unusable lines left out: {data.skipped}")
        skipped[name], digests[name] = data.skipped, data.digest
        for seed in config.run.seed:
            finetuning, digest = _glue_finetuning(config, task, data, seed, loop.batch_size, device)
            histories[name][seed] = finetune(
                finetuning,
                loop,
                seed=seed,
                folder=_folder(config.run, seed, name),
                identity=_identity(f"glue/{name}", config.identity(), digest, data.digest, seed),
                say=say,
            )
    by_seed = [
        glue_means({name: history[seed][-1] for name, history in histories.items()}, tasks)
        for seed in config.run.seed
    ]
    means: dict[str, Any] = {key: {"mean": value, "std": None} for key, value in by_seed[0].items()}
    if len(by_seed) > 1:
        means = {key: {"mean": one.mean, "std": one.std} for key, one in aggregate(by_seed).items()}
    return {
        "task": "glue",
        "model": {"name": config.model, "part": config.part, "weights_sha256": digest},
        "data": {"path": str(config.data.resolve()), "sha256": digests},
        "config": config.identity(),
        "one_number": {name: next(iter(task.metrics)) for name, task in tasks.items()},
        "means": means,
        "means_over": list(tasks),
        "tasks": {name: over_seeds(found) for name, found in histories.items()},
        "skipped": skipped,
        **_where(started, device),
    }


def _chosen(config: GlueConfig) -> dict[str, GlueTask]:
    by_name = {name.lower(): task for name, task in TASKS.items()}
    by_name |= {task.hf[0]: task for task in TASKS.values()}
    unknown = [name for name in config.tasks if name.lower() not in by_name]
    if unknown:
        raise ConfigError(f"--tasks {unknown[0]}: GLUE has {', '.join(TASKS)}")
    return {by_name[name.lower()].name: by_name[name.lower()] for name in config.tasks}


def _glue_finetuning(
    config: GlueConfig, task: GlueTask, data: GlueData, seed: int, batch_size: int, device: torch.device
) -> tuple[GlueFinetuning, str]:
    features, text = load_text_features(config.model, config.part)
    digest = weights_digest(features)
    torch.manual_seed(seed_of("head", seed))
    finetuning = GlueFinetuning(
        TextClassifier(features, task.outputs, config.dropout),
        load_tokenizer(text, features.encoder.vocab_size),
        data,
        task,
        batch_size=batch_size,
        max_tokens=checked_tokens(features, config.max_tokens),
        seed=seed,
        device=device,
    )
    return finetuning, digest


def run_nlvr2(config: Nlvr2Config, say: Say, device: torch.device = CPU) -> dict[str, Any]:
    """Finetunes and evaluates on each seed; gives the content of the JSON."""
    started = time.perf_counter()
    train, dev = (
        read_nlvr2(config.data, split, config.images, config.allow_missing)
        for split in ("train", config.split)
    )
    say(f"{config.data}: {len(train.examples):,} training and {len(dev.examples):,} evaluation examples")
    if train.missing or dev.missing:
        say(
            f"left out, as an image is missing: {train.missing:,} of train, {dev.missing:,} of {config.split}"
        )
    histories: dict[int, list[Scores]] = {}
    skipped: dict[str, Any] = {}
    for seed in config.run.seed:
        images, texts, text = load_pair_features(config.model)
        torch.manual_seed(seed_of("head", seed))
        model = PairClassifier(images, texts, config.hidden, config.dropout, config.frozen)
        digest = weights_digest(images) + weights_digest(texts)
        tokenizer = load_tokenizer(text, texts.encoder.vocab_size)
        sentences = [
            tokenize_texts(tokenizer, [e.sentence for e in split.examples], None, checked_tokens(texts, None))
            for split in (train, dev)
        ]
        task = PairTask(
            model,
            train.examples,
            dev.examples,
            (sentences[0], sentences[1]),
            batch_size=config.loop.batch_size,
            seed=seed,
            workers=_workers(config.run),
            device=device,
        )
        identity = _identity("nlvr2", config.identity(), digest, train.digest + dev.digest, seed)
        histories[seed] = finetune(
            task, config.loop, seed=seed, folder=_folder(config.run, seed), identity=identity, say=say
        )
        skipped[str(seed)] = {side: dict(found) for side, found in task.skipped.items()}
    return {
        "task": "nlvr2",
        "model": {"name": config.model, "weights_sha256": digest},
        "data": {
            "path": str(config.data.resolve()),
            "split": config.split,
            "train": len(train.examples),
            "missing": {"train": train.missing, config.split: dev.missing},
        },
        "config": config.identity(),
        **over_seeds(histories),
        "skipped": skipped,
        **_where(started, device),
    }


def _workers(run: RunConfig) -> int:
    return usual_workers() if run.workers is None else run.workers


def _folder(run: RunConfig, seed: int, task: str = "") -> Path | None:
    return None if run.work is None else run.work / task / f"seed-{seed}"


def _identity(suite: str, config: dict[str, Any], model: str, data: str, seed: int) -> dict[str, Any]:
    return {"suite": suite, "seed": seed, "model": model, "data": data, "config": config}


def _where(started: float, device: torch.device) -> dict[str, Any]:
    return {"seconds": round(time.perf_counter() - started, 3), "device": str(device)}
