"""Training under DeepSpeed: engine, loop, schedule, checkpoints."""
