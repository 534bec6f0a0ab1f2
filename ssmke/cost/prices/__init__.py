"""Dated prices: the catalogue, the user's own, and what a node costs per hour."""
