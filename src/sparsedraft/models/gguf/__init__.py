"""GGUF files as checkpoints: their headers, parts, keys and rotary embeddings, checked and converted."""

from sparsedraft.models.gguf.convert import CONVERSION, convert_gguf

__all__ = ["CONVERSION", "convert_gguf"]
