"""The `ssmke` command: finds the group that is asked for and imports only that."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from ssmke import __version__
from ssmke.errors import SSMKEError
from ssmke.screen import clean, clean_warnings

GROUPS = {
    "data": "make, import, verify and show image-text shards",
    "targets": "build, verify and show the teacher-target cache",
    "plan": "which ds_config, micro batch and accumulation fit your GPUs, and what that will take",
    "evaluate": "score a trained model",
    "reproduce": "run a published table again, at the scale of your machine",
    "search": "index pictures, find them by text or picture, serve a page for it",
    "export": "a trained model as a folder to share, as ONNX, for sentence-transformers; its card",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``ssmke GROUP ...``; 0 done, 1 a check found problems, 2 an error that the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ssmke {__version__}")
        return 0
    group, rest = arguments[0], arguments[1:]
    if group not in GROUPS:
        close = difflib.get_close_matches(group, GROUPS, n=1)
        hint = f" Did you mean `ssmke {close[0]}`?" if close else ""
        print(f"error: unknown command {clean(repr(group))}.{hint}\n{_usage()}", file=sys.stderr)
        return 2
    clean_warnings()
    try:
        code: int = importlib.import_module(f"ssmke.cli.{group}").main(rest)
    except SSMKEError as error:
        print(f"error: {clean(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    return code


def _usage() -> str:
    lines = [f"  ssmke {name:<10} {what}" for name, what in GROUPS.items()]
    return "\n".join(
        [
            "usage: ssmke COMMAND ... (each has --help)",
            *lines,
            "",
            "Training: deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json --help",
            "Cost:     ssmke-cost report",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
