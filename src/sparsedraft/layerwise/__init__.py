"""A checkpoint a decoder layer at a time: its weights, the inputs that text brings them, and the sweep of a linear."""
