"""A GGUF file of a checkpoint: planned whole, so that what is in the way is said first, then written."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from sparsedraft.base.console import track
from sparsedraft.models import checkpoint
from sparsedraft.models.gguf.tensor_names import EMBEDDING, HEAD, Names
from sparsedraft.models.gguf.write_file import Entry, Plan, write_file
from sparsedraft.models.gguf.write_rope import rope_factors
from sparsedraft.models.gguf.write_settings import ARCHITECTURES, check_architecture, settings
from sparsedraft.models.gguf.write_tokenizer import TokenizerKeys
from sparsedraft.stages.export.rows import Tally, kind_of, rows_of
from sparsedraft.stages.export.source import finite, source_of

ROPE = "rope_freqs.weight"


class Planned:
    """The file of the checkpoint `ref` in `folder` with matrices of the type `kind` (q4_0, q8_0, bf16).

    The constructor reads no weights. UserError for a checkpoint that cannot be exported.
    """

    def __init__(self, ref: str, folder: Path, kind: str) -> None:
        config = checkpoint.read_config(folder)
        check_architecture(ref, config)
        keys = settings(ref, config)
        self.source = source_of(ref, folder, config)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.names = Names(ARCHITECTURES[config.model_type], config.num_hidden_layers, heads, kv_heads)
        tokenizer = TokenizerKeys(ref, folder, checkpoint.load_tokenizer(folder), config.vocab_size)
        self.factors, self.layers, self.ends = rope_factors(config), Tally(), Tally()
        entries = [self._entry(name, shape, kind) for name, shape in self.source.shapes.items()]
        if self.factors is not None:
            entries.insert(0, Entry(ROPE, "", self.factors.shape, Kind.F32))
        name = Path(os.path.expanduser(ref)).resolve().name
        self.plan = Plan(self.names.arch, name, kind, keys, tokenizer, entries)

    def _entry(self, name: str, shape: tuple[int, ...], kind: str) -> Entry:
        placed = self.names.of(name)
        if len(shape) == 1:
            return Entry(placed, name, shape, Kind.F32)
        ends = placed in (EMBEDDING, HEAD)
        return Entry(placed, name, shape, kind_of(kind, self.source.type(name), shape[1], ends))

    def write(self, path: Path) -> None:
        """Write the file `path`. UserError for weights that are not finite, or that a type does not hold."""
        with track("writing GGUF", len(self.plan.tensors), "tensors") as tracker:

            def data(entry: Entry) -> NDArray[Any]:
                tracker.advance()
                return self._data(entry)

            write_file(path, self.plan, data)

    def _data(self, entry: Entry) -> NDArray[Any]:
        if entry.name == ROPE:
            assert self.factors is not None
            return self.factors
        order = self.names.order(entry.source, entry.shape[0])
        if len(entry.shape) == 1:
            return np.ascontiguousarray(finite(entry.source, self.source.vector(entry.source))[order].numpy())
        coded = entry.kind in (Kind.Q4_0, Kind.Q8_0)
        tally = self.ends if entry.name in (EMBEDDING, HEAD) else self.layers
        return rows_of(entry.source, self.source.matrix(entry.source, coded), entry.kind, order, tally)

    def result(self) -> dict[str, Any]:
        """What was written."""
        kinds = Counter(entry.kind.name for entry in self.plan.tensors)
        blocks = self.plan.kind in ("q4_0", "q8_0")
        matrices = [entry for entry in self.plan.tensors if len(entry.shape) == 2]
        return {
            "architecture": self.plan.arch,
            "split": self.plan.tokenizer.pre,
            "tensors": dict(kinds),
            "kept_as_floats": [entry.source for entry in matrices if blocks and entry.kind in (Kind.F16, Kind.BF16)],
            "zeros": self.layers.zeros / max(1, self.layers.weights),
            "scale_change": max(self.layers.scale_change, self.ends.scale_change),
        }
