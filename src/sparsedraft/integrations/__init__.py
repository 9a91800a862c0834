"""Plugins of other programs, each in a folder of its own; the package does not need them."""
