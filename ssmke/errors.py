"""Errors that a user can act on.

Every failure that we foresee is raised where it is known, as one of these, with a message that names the
file, key or flag and says what to do. Launchers and command lines print the message alone and exit with its
`exit_code`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class SSMKEError(Exception):
    """Root of all errors whose message is meant for the user."""

    exit_code = 2
    """What a launcher ends with."""
    told = False
    """True on a rank whose error rank 0 has too, and prints."""


class ConfigError(SSMKEError):
    """A recipe, flag or DeepSpeed JSON that is wrong, unknown, or contradicts another."""


class DataError(SSMKEError):
    """Shards, manifests or sources that are missing, damaged or empty."""


class WeightsError(SSMKEError):
    """Pretrained weights that cannot be found, read, or matched key by key."""


class TargetCacheError(SSMKEError):
    """A target cache that is missing, partial, or made from other shards, teacher or preprocessing."""


class CheckpointError(SSMKEError):
    """A checkpoint that is missing, incomplete, damaged, or of another run."""


class BadSample(Exception):
    """One sample that cannot be used; skipped and counted by ``reason``, never fatal by itself.

    ``reason`` is a short stable phrase ("truncated image", "empty caption") that serves as counter key.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return type(self), (self.reason, self.detail)
