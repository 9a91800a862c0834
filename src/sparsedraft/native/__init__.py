"""Running drafters where zeros pay: packed checkpoints, kernels for CPUs, and an engine made of them."""
