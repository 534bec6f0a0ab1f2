"""What a run needs and takes before it starts: memory per rank, bytes between ranks, seconds of a step, and the choice.

Formulas are checked against engines that really run (tests/planning, benchmarks/scaling.py); what cannot be run where
this was written, more than two ranks and any GPU, is arithmetic on stated figures and says so.
"""
