"""The teacher-target cache: what the frozen teacher says about every image, computed once."""
