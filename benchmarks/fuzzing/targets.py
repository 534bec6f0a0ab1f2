"""All targets by name."""

from __future__ import annotations

from benchmarks.fuzzing import data, models, money, sources
from benchmarks.fuzzing.guard import Target

TARGETS: dict[str, Target] = {
    target.name: target for group in (data, sources, models, money) for target in group.TARGETS
}
