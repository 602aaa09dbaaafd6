"""Training: a run's settings, the loop that yields events, the run folder, checkpoints."""
