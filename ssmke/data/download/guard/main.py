"""Main program of the environment that img2dataset runs in: img2dataset, with bounds on all that it fetches.

img2dataset reads a body to its end, whatever its length and however slowly it comes, and asks any address that
a list or a redirect names. One hostile URL is then enough to fill the memory or to hold a shard for ever. So its
workers run under

- an opener for `urllib.request` that bounds every URL (`bounded`, over `sockets`);
- OpenCV's decoder with a bound on pixels, and with its mistakes put right (`pictures`);
- a count of finished URLs, which the parent watches and shows (`guarded`).

The modules of this folder travel with the work: to spawned processes by the import path, to Ray's workers as its
working folder, to Spark's as files of the session. (So a session is made here. img2dataset would make one that
is bound to this machine, whatever Spark is configured for.) The whole process group ends when the parent's pipe
(standard input) closes, so nothing survives a parent that is killed.

This folder holds nothing but the guard, because python puts the folder of its script on the import path. Only
the standard library may be imported at the top: the python that runs this file knows nothing of ssmke.

Usage: ``SSMKE_GUARD='{limits}' PYTHON main.py '{arguments of img2dataset.download}'``
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

# Run as a script: the files beside this one are found by their bare names.
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)

import bounded  # type: ignore[import-not-found]  # noqa: E402
import guarded  # type: ignore[import-not-found]  # noqa: E402


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the parent is gone
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _start_ray(processes: int) -> None:
    import ray  # type: ignore[import-not-found]

    # An existing cluster has its own number of processes.
    local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": processes}
    ray.init(runtime_env={"working_dir": _HERE}, **local)


def _start_spark(processes: int) -> None:
    from pyspark import SparkConf  # type: ignore[import-not-found]
    from pyspark.sql import SparkSession  # type: ignore[import-not-found]

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("ssmke download")
    if not SparkConf().contains("spark.master"):
        builder = builder.master(f"local[{processes}]")
    context = builder.getOrCreate().sparkContext
    for module in ("bounded", "guarded", "pictures", "sockets"):
        context.addPyFile(os.path.join(_HERE, f"{module}.py"))  # noqa: PTH118


def main() -> None:
    if os.getpgrp() == os.getpid():
        threading.Thread(target=_end_with_parent, daemon=True).start()
    limits = bounded.Limits.from_environment()
    arguments = json.loads(sys.argv[1])
    if arguments["distributor"] == "ray":
        _start_ray(arguments["processes_count"])
    elif arguments["distributor"] == "pyspark":
        _start_spark(arguments["processes_count"])
    # Not "import img2dataset.main": the package has a function of that name.
    program: Any = importlib.import_module("img2dataset.main")
    program.Downloader = functools.partial(guarded.Guarded, limits)
    program.download(**arguments)


if __name__ == "__main__":
    main()
