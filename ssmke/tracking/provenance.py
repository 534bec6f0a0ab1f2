"""Which code, machine and libraries a run came from.

Environment variables are kept by an allow-list: what explains a run and carries no secret. Versions are read
from package metadata, without importing anything. Git is asked with a time limit: a repository on a dead
network disk must not hang the thread that asks.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "DS_ACCELERATOR",
    "LOCAL_WORLD_SIZE",
    "NCCL_DEBUG",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "TORCH_DISTRIBUTED_DEBUG",
    "WORLD_SIZE",
)
PACKAGES = (
    "ssmke",
    "torch",
    "torchvision",
    "deepspeed",
    "timm",
    "transformers",
    "tokenizers",
    "webdataset",
    "safetensors",
    "numpy",
    "pillow",
    "mlflow",
    "nvidia-ml-py",
    "triton",
)
_GIT_TIMEOUT_S = 5.0


def environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Python, platform, versions of the libraries that matter, and the variables that are allowed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "variables": {name: variables[name] for name in ENVIRONMENT if name in variables},
    }


def git_state(folder: Path) -> dict[str, str]:
    """MLflow tags: commit of the repository around ``folder``, and whether it was changed; may be empty."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    dirty = "unknown" if changed is None else str(bool(changed)).lower()
    return {"mlflow.source.git.commit": commit, "ssmke.git.dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
