"""Speculative decoding: p is the target, q the drafter, K the number of tokens drafted a step."""
