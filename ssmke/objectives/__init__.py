"""Losses of S-SMKE as small functions with the maths visible, and the module that joins them."""
