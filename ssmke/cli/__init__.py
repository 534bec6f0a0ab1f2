"""Command lines: `ssmke` and `ssmke-cost`."""
