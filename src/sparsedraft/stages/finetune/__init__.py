"""Sparse fine-tuning: train the weights that are left on what the target wrote, and never revive the others."""
