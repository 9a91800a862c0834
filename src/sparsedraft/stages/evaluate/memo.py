"""The target's logits along its own answers, computed once for all drafters: sampled acceptance needs them often."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.base.files import write_atomic
from sparsedraft.base.hashing import text_hash
from sparsedraft.text.bins import Bin
from sparsedraft.text.logits import answer_logits
from sparsedraft.writers.loaded import LoadedModel

MOST = 16 << 30  # bytes on disk: about 50,000 places of a text, of 152,000 tokens in bfloat16


class TargetLogits:
    """The logits of `target`, kept in files of `folder` up to `most` bytes, and half of what the disk has left."""

    def __init__(self, target: LoadedModel, folder: Path, most: int = MOST) -> None:
        self.target, self.folder = target, folder
        folder.mkdir(exist_ok=True)
        used = sum(file.stat().st_size for file in folder.iterdir())
        self.left = min(most - used, shutil.disk_usage(folder).free // 2)

    def packed(self, model: PreTrainedModel, row: Bin) -> Tensor:
        """`answer_logits` of the target's transformers model."""
        key = torch.cat([row.ids[0], row.positions[0], row.predict]).tolist()
        return self._kept(key, lambda: answer_logits(model, row)).to(row.ids.device)

    def after(self, ids: Sequence[int], n: int) -> Tensor:
        """Logits [n, V] after each of the last n of `ids`, by the runtime that the loop uses."""
        return self._kept([*ids, n], lambda: self.target.cached_backend().forward([ids], [n])[0])

    def _kept(self, key: Sequence[int], read: Callable[[], Tensor]) -> Tensor:
        file = self.folder / f"{text_hash(repr(key))}.safetensors"
        if file.exists():
            with suppress(SafetensorError, OSError, LookupError):  # else it is read again
                return load_file(file)["logits"]
        logits = read()
        if logits.nbytes <= self.left:
            self.left -= logits.nbytes
            with write_atomic(file) as temporary:
                save_file({"logits": logits.contiguous().cpu()}, temporary)
        return logits
