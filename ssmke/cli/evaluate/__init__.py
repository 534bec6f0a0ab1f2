"""`ssmke evaluate`: measure a trained model, ours or a peer's, one suite a command.

Each suite is a module that adds its command with `register`. All print a table, with 95 % intervals and chance beside
the numbers, so that a number can be judged without knowing the size of the split; `--out` keeps everything, and what
it was measured on, as JSON; `--mlflow` logs the numbers. What can be wrong with the flags is said before the model
is loaded. Modules that cost time to import are imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from tyro.extras import SubcommandApp

from ssmke.cli import finetune_suites
from ssmke.cli.evaluate import probe, retrieval, zero_shot

app = SubcommandApp()
for suite in (retrieval, zero_shot, probe):
    suite.register(app)
finetune_suites.register(app)


def main(argv: Sequence[str]) -> int:
    """Run ``ssmke evaluate ARGV``; gives the exit code.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    code: int = app.cli(args=list(argv), prog="ssmke evaluate", description="Measure a trained model.")
    return code
