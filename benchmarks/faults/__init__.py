"""Faults against real two-rank trainings: `campaign` injects them, `comparison` and `accounting` judge what is left.

A fault is a signal (SIGKILL, SIGTERM, SIGINT) to one of rank 0, rank 1, the `deepspeed` command or all processes, in
one of `moments.PLACES`. A lineage is one run folder with a target cache of its own; it takes a fault of each place in
turn, each followed by the same command with `--resume auto`, until it is done. Then it must be what the run that
nobody disturbed is. ``python -m benchmarks.faults`` runs many; `tests/faults/test_kills.py` one lineage.
"""
