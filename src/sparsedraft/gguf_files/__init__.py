"""GGUF files as checkpoints: their headers, parts, keys and rotary embeddings, checked and converted."""

from sparsedraft.gguf_files.convert import convert_gguf

__all__ = ["convert_gguf"]
