"""The memory of keys and values in the native engine (csrc/layout/key_blocks.hpp)."""

CACHES = {"int16": 16, "int8": 8}  # bits of a number
CONTEXT = 4096  # tokens of a text whose memory is said, where no length is named
NARROW = 32  # numbers of a head's value are padded to a multiple of this
SCALES = 8  # bytes of the two scales of a token's key and value in each head


def bytes_per_token(layers: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    """Bytes that the engine keeps for each token, by the type of the cache."""
    numbers = 2 * -(-head_dim // 2) + -(-head_dim // NARROW) * NARROW
    return {name: layers * kv_heads * (numbers * bits // 8 + SCALES) for name, bits in CACHES.items()}
