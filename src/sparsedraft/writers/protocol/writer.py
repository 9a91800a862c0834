"""What writes a model's tokens."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from sparsedraft.maths.sampling import Sampling
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.requests import Completion, Request


class Writer(Protocol):
    """Writes a model's tokens: the same few calls, whether the model is in this process or behind a server."""

    name: str
    eos_ids: frozenset[int]

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0
    ) -> Iterator[Completion]:
        """The completion of each request as it finishes, in no particular order."""

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """For each sample the k likeliest ids at every answer token, and their log-probabilities, flattened."""
