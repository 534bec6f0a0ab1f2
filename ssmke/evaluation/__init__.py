"""Evaluation: embed a split once, score it, show it."""
