"""Linear probes of the scenes weights: what a [CLS] knows of the generator's facts, which it was never told.

Ridge regression from the standardised [CLS] to each fact on train scenes, scored on test scenes by mean average
precision (%, over the facts of a family). Facts are used here only, for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

import torch
from torch import Tensor

from ssmke.data.sources.scene_plan import Scene, Thing

Facts = Callable[[Scene], Iterable[Hashable]]


def _things(scene: Scene) -> list[Thing]:
    return [thing for group in scene.groups for thing in group]


def _placed(thing: Thing) -> tuple[int, int, str]:
    return min(2, int(thing.x * 3)), min(2, int(thing.y * 3)), thing.colour


FAMILIES: Mapping[str, Facts] = {
    "colour": lambda scene: (thing.colour for thing in _things(scene)),
    "shape": lambda scene: (thing.shape for thing in _things(scene)),
    "colour and shape": lambda scene: (thing.kind for thing in _things(scene)),
    "colour at place": lambda scene: map(_placed, _things(scene)),
    "count": lambda scene: (len(_things(scene)),),
    "kind of scene": lambda scene: (f"{scene.kind} {scene.relation}",),
    "canvas": lambda scene: (scene.canvas.colour, scene.canvas.other),
}
"""Facts that hold in a scene, by family."""


def probe(
    train: Tensor, train_scenes: list[Scene], test: Tensor, test_scenes: list[Scene]
) -> dict[str, float]:
    """Mean average precision by family for features [N, D] of train and test scenes."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    x, z = ((features - mean) / deviation for features in (train, test))
    x, z = (torch.cat([features, torch.ones(len(features), 1)], 1) for features in (x, z))
    gram = x.T @ x + 10 * torch.eye(x.shape[1])
    scores = {}
    for family, facts in FAMILIES.items():
        known, asked = _table(train_scenes, facts, test_scenes), _table(test_scenes, facts, test_scenes)
        scores[family] = _mean_average_precision(asked, z @ torch.linalg.solve(gram, x.T @ known))
    return scores


def _table(scenes: list[Scene], facts: Facts, named_by: list[Scene]) -> Tensor:
    """Which of the facts of `named_by` hold in which scene, [scenes, facts]."""
    column = {
        fact: number for number, fact in enumerate(dict.fromkeys(f for s in named_by for f in facts(s)))
    }
    table = torch.zeros(len(scenes), len(column))
    for row, scene in enumerate(scenes):
        for fact in facts(scene):
            if fact in column:
                table[row, column[fact]] = 1
    return table


def _mean_average_precision(truth: Tensor, scores: Tensor) -> float:
    found = []
    for fact in range(truth.shape[1]):
        ranked = truth[scores[:, fact].argsort(descending=True), fact]
        if ranked.sum() >= 3:  # fewer positives say nothing
            precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
            found.append(float((precision * ranked).sum() / ranked.sum()))
    return 100 * sum(found) / len(found)
