"""No way from a file to code: what would run or unpickle it does not occur in the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "ssmke").rglob("*.py"), *(ROOT / "launchers").rglob("*.py")])
PICKLES = {"ssmke/data/download/guard/guarded.py"}
"""Unpickles what the same process pickled, for the distributor of img2dataset."""


def forbidden(tree: ast.AST, pickles: bool) -> Iterator[str]:
    """What in a module may run, or unpickle, what a file says."""
    names = _imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func, names)
        keywords = {k.arg: k.value for k in node.keywords}
        last = name.rpartition(".")[2]
        where = f"line {node.lineno}: {name}"
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"):
            yield where
        if not _is(keywords.get("shell"), False) and "shell" in keywords:
            yield f"{where}(shell)"
        if not _is(keywords.get("allow_pickle"), False) and (
            "allow_pickle" in keywords or name in ("numpy.load", "numpy.save")
        ):
            yield f"{where}(allow_pickle)"
        if name == "torch.load" and not _is(keywords.get("weights_only"), True):
            yield f"{where} without weights_only=True"
        if name.startswith(
            ("yaml.load", "yaml.unsafe", "yaml.full", "dill.", "cloudpickle.", "joblib.", "marshal.load")
        ):
            yield where
        if name.startswith(("pickle.load", "pickle.Unpickler", "shelve.")) and not pickles:
            yield where
        if not _is(keywords.get("trust_remote_code"), False) and "trust_remote_code" in keywords:
            yield f"{where}(trust_remote_code)"
        if last in ("extractall", "unpack_archive"):
            yield where


def _imported(tree: ast.AST) -> dict[str, str]:
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, names)}.{node.attr}"
    return ""


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_sources_runs_or_unpickles_a_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(forbidden(tree, str(path.relative_to(ROOT)) in PICKLES)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(x)",
        "from torch import load\nload(x, weights_only=False)",
        "import numpy as np\nnp.load(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import pickle as p\np.loads(x)",
        "import yaml\nyaml.load(x)",
        "eval(x)",
        "exec(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import os\nos.system(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "tar.extractall()",
    ],
)
def test_each_of_them_would_be_seen(text: str) -> None:
    assert list(forbidden(ast.parse(text), pickles=False))
