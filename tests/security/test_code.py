"""Rules that the code of the package keeps: no shell, no unpickling, no code of a hub."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ssmke"
UNPICKLES = {"data/download/guard/guarded.py"}
"""Reads what its own parent process wrote a moment ago."""


_UNPICKLING = ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load")


def _calls() -> list[tuple[str, str, ast.Call]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((str(path.relative_to(PACKAGE)), ast.unparse(node.func), node))
    assert len(found) > 5000
    return found


def test_no_call_runs_a_shell_or_foreign_code() -> None:
    wrong = []
    for file, name, call in _calls():
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        last = name.rpartition(".")[2]
        if options.get("shell", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            wrong.append(f"{file}: {name}({options})")
        if name in ("os.system", "os.popen", "eval", "exec", "subprocess.getoutput", "yaml.load"):
            wrong.append(f"{file}: {name}")
        if (
            name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load")
            and file not in UNPICKLES
        ):
            wrong.append(f"{file}: {name}")
        if name == "torch.load" and options.get("weights_only") != "True":
            wrong.append(f"{file}: torch.load")
        if name == "np.load" and options.get("allow_pickle") != "False":
            wrong.append(f"{file}: np.load")
        if (
            last in ("extractall", "extract")
            and "." in name
            and name.split(".")[0] in ("tar", "archive", "zip")
        ):
            wrong.append(f"{file}: {name}")
        if (
            name.startswith("subprocess.")
            and call.args
            and isinstance(call.args[0], (ast.Constant, ast.JoinedStr))
        ):
            wrong.append(f"{file}: {name} of a string")
    assert wrong == []
