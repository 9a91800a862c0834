"""One-shot pruning of every decoder linear, and layer-pruning to compare with."""
