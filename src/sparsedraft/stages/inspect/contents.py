"""What `inspect` says of a checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsedraft.models.records import MatrixRecord


@dataclass(frozen=True)
class Contents:
    """What was counted in a checkpoint. MACs are per token, and None where they are not known."""

    matrices: list[MatrixRecord]
    macs: int | None
    macs_dense: int | None  # with no weight pruned
    nonzero: int  # parameters that are not zero,
    parameters: int  # and all parameters
    bytes: int
    dtypes: list[str]
    head: str | None = None  # where the folder is packed: the type of the head's values,
    embedding: str | None = None  # that of the embedding's,
    activations: int | None = None  # and the fewest bits of the activations that its int8 is multiplied with
    quantized: str | None = None  # the quantiser's format
    cache: dict[str, int] | None = None  # bytes of keys and values a token in the native engine, by the cache's type
    claim: str | None = None  # the pattern that the checkpoint claims,
    claim_holds: bool | None = None  # and whether its weights have it

    def to_dict(self, folder: Path, architecture: str, layers: int | None) -> dict[str, Any]:
        """The result of `inspect` for the checkpoint in `folder`."""
        size, zeros, stored = (sum(getattr(m, of) for m in self.matrices) for of in ("size", "zeros", "bytes"))
        return {
            "checkpoint": str(folder),
            "architecture": architecture,
            "layers": layers,
            "quantized": self.quantized,
            "macs_per_token": self.macs,
            "macs_dense": self.macs_dense,
            "parameters": self.parameters,
            "nonzero_parameters": self.nonzero,
            "bytes": self.bytes,
            "dtypes": self.dtypes,
            "head_weights": self.head,
            "embedding_weights": self.embedding,
            "activations": self.activations,
            "cache_bytes_per_token": self.cache,
            "bytes_per_weight": stored / size if size else None,
            "sparsity": zeros / size if size else 0.0,
            "sparsity_whole_model": 1 - self.nonzero / self.parameters,
            "claims": self.claim,
            "claim_holds": self.claim_holds,
            "linears": [
                {**asdict(m), "sparsity": m.zeros / m.size, "bytes_per_weight": m.bytes / m.size} for m in self.matrices
            ],
        }
