"""Sparse fine-tuning: train the weights that pruning left on what the target wrote; pruned weights stay zero."""
