"""Readers of foreign files under hostile bytes: what they must keep to, and bytes that look real enough to hurt.

`guard` is the property, `mutations` makes bytes, the other modules name readers with real files to begin from.
`benchmarks.fuzz` runs them under coverage guidance for minutes, `tests/fuzz` the same ones in small.
"""
