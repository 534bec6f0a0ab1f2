"""The ledger of a run that was hurt, against the ledger of the same run unbroken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.attempts import HEARTBEAT_S
from ssmke.cost.ledger.outcomes import OUTCOMES, by_outcome
from ssmke.cost.ledger.reader import read_run
from ssmke.cost.ledger.usage import Usage, total


@dataclass(frozen=True)
class Accounts:
    """An unbroken and a hurt run of the same recipe."""

    faults: int
    unclosed: int
    """Ledgers of attempts that trained and could not say that they end."""
    resumed_steps: tuple[int, ...]
    unbroken: Usage
    paid: Usage
    outcomes: dict[str, Usage]

    @classmethod
    def of(cls, run: Path, unbroken: Path, faults: int) -> Accounts:
        """From the ledgers of two run folders."""
        found = read_run(run)
        in_order = sorted(found, key=lambda s: s.begin_ns)
        return cls(
            faults=faults,
            unclosed=sum(s.reason is None and s.begun is not None for s in found),
            resumed_steps=tuple(s.resumed_step for s in in_order if s.resumed_step is not None),
            unbroken=total(read_run(unbroken)),
            paid=total(found),
            outcomes=by_outcome(found),
        )

    @property
    def allowed_s(self) -> float:
        """A heartbeat for each unclosed ledger, and a twentieth of the training for steps behind the pace."""
        return self.unclosed * HEARTBEAT_S + 0.05 * self.unbroken.phases["train"] / 1e9

    def off_s(self, phase: str) -> float:
        """Useful seconds of a phase in the hurt run less those in the unbroken one."""
        return (self.outcomes["useful"].phases.get(phase, 0) - self.unbroken.phases.get(phase, 0)) / 1e9

    def problems(self) -> list[str]:
        """What does not add up."""
        found = []
        if sum(self.outcomes.values(), Usage()) != self.paid:
            found.append("the outcomes do not add up to what was paid")
        if abs(self.off_s("train")) > self.allowed_s:
            found.append(
                f"useful training is off by {self.off_s('train'):+.2f} s, allowed {self.allowed_s:.2f} s"
            )
        return found


def phases_table(accounts: Accounts) -> str:
    """The comparison by phase and by outcome, as Markdown."""
    lines = [
        f"{accounts.faults} kills; attempts resumed after steps {', '.join(map(str, accounts.resumed_steps))}.",
        "",
        "| phase | unbroken s | useful part of the killed run s | difference s | allowed s |",
        "| --- | --: | --: | --: | --: |",
    ]
    useful = accounts.outcomes["useful"]
    for phase in sorted(accounts.unbroken.phases):
        whole, kept = accounts.unbroken.phases[phase] / 1e9, useful.phases.get(phase, 0) / 1e9
        allowed = f"{accounts.allowed_s:.1f}" if phase == "train" else ""
        lines.append(f"| {phase} | {whole:.2f} | {kept:.2f} | {accounts.off_s(phase):+.2f} | {allowed} |")
    whole, kept = accounts.unbroken.device_ns / 1e9, useful.device_ns / 1e9
    lines.append(f"| all | {whole:.2f} | {kept:.2f} | {kept - whole:+.2f} | |")
    lines += ["", "| outcome in the killed run | device-seconds | share |", "| --- | --: | --: |"]
    for name in OUTCOMES:
        ns = accounts.outcomes[name].device_ns
        lines.append(f"| {name} | {ns / 1e9:.2f} | {ns / accounts.paid.device_ns:.1%} |")
    lines.append(f"| paid | {accounts.paid.device_ns / 1e9:.2f} | 100 % |")
    return "\n".join(lines) + "\n"


def lineages_table(all_accounts: Sequence[Accounts]) -> str:
    """One row for each lineage, as Markdown."""
    lines = [
        "| faults | unbroken train s | useful train s | difference s | allowed s "
        "| useful | redone | failed | preempted |",
        "| --: " * 9 + "|",
    ]
    for a in all_accounts:
        whole, kept = a.unbroken.phases["train"] / 1e9, a.outcomes["useful"].phases.get("train", 0) / 1e9
        shares = " | ".join(f"{a.outcomes[name].device_ns / a.paid.device_ns:.0%}" for name in OUTCOMES)
        lines.append(
            f"| {a.faults} | {whole:.2f} | {kept:.2f} | {kept - whole:+.2f} | {a.allowed_s:.2f} | {shares} |"
        )
    return "\n".join(lines) + "\n"
