"""Finetuning suites: how good a start a trained half is for a task of its own (image classes, GLUE, NLVR2).

They run on one device with a short loop of their own (`loop`): the data sets are small, a run takes minutes to hours,
and one process with plain PyTorch is easier to read and to trust than a distributed engine. DeepSpeed is not needed.
"""
