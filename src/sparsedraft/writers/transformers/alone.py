"""A model as transformers itself runs it: with its own cache, one sequence, token by token.

For models whose state cannot be taken back, such as recurrent ones, or whose cache holds more than keys and values.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.models.decoder import context_length


class AloneBackend:
    """A transformers model as a Backend of one row. It reads a prompt in one pass and what follows token by token, as
    `model.generate` does, so that its logits are the same.

    After a rollback, everything that stays is read again.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.max_length, self.passes = model, context_length(model), 0
        self._tokens: list[int] = []
        self._state: dict[str, Any] | None = None  # what `generate` hands from step to step; None: nothing was read

    @property
    def lengths(self) -> list[int]:
        return [len(self._tokens)]

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        """See Backend. Where nothing was read yet, the prompt is what comes before the last `logits` - 1 tokens."""
        (new,), (n,) = ids, logits
        self._tokens += new
        follow = max(0, n - 1) if self._state is None else len(new)
        ends = range(len(self._tokens) - follow + (self._state is not None), len(self._tokens) + 1)
        outputs = [self._read(end) for end in ends if new]
        return [torch.cat(outputs[len(outputs) - n :]) if n else torch.empty(0)]

    @torch.no_grad()
    def _read(self, end: int) -> Tensor:
        """Logits [1, V] after the first `end` tokens, of which the last, or none, was not read yet."""
        ids = torch.tensor([self._tokens[:end]], device=self.model.device)
        first = self._state is None
        state = self._begun(ids) if self._state is None else self._state
        step = None if first or not state.get("use_cache", True) else 1
        inputs = self.model.prepare_inputs_for_generation(  # type: ignore[operator]
            ids, next_sequence_length=step, is_first_iteration=first, **state
        )
        out = self.model(**inputs, return_dict=True)
        self.passes += 1
        self._state = self.model._update_model_kwargs_for_generation(out, state)  # type: ignore[operator]
        return out.logits[:, -1]

    def _begun(self, ids: Tensor) -> dict[str, Any]:
        """What transformers prepares before its first step, with its cache."""
        prepared: dict[str, Any] = {}

        def take(model: object, input_ids: Tensor, **state: Any) -> Tensor:
            prepared.update(state)
            return input_ids

        takes_mask = "attention_mask" in inspect.signature(self.model.forward).parameters
        self.model.generate(  # type: ignore[operator]
            ids, max_new_tokens=1, do_sample=False, num_beams=1, custom_generate=take, pad_token_id=0,
            **({"attention_mask": torch.ones_like(ids)} if takes_mask else {}),
        )  # fmt: skip
        for name in ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"):
            prepared.pop(name, None)
        return prepared

    def rollback(self, lengths: Sequence[int]) -> None:
        (length,) = lengths
        if length < len(self._tokens):
            self._tokens, self._state = self._tokens[:length], None

    def select(self, rows: Sequence[int]) -> None:
        """Does nothing: there is one row."""
