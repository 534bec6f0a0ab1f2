"""Weights of the embedded default that ship with the package, and the scripts that made them (README.md)."""
