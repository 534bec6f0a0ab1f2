"""What a run will cost, or would have cost elsewhere: intervals with their reasons."""
