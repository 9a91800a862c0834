"""Self-data distillation: the target writes the answers that the drafter learns from."""
