"""A checkpoint, packed or plain, as a model of the native engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.base.errors import Unsupported, UserError
from sparsedraft.models import checkpoint, quantizers
from sparsedraft.models.shards import Shards
from sparsedraft.native import architecture, layout
from sparsedraft.native.cache_size import bytes_per_token
from sparsedraft.native.extension import extension
from sparsedraft.native.layout_cache import LayoutCache
from sparsedraft.native.memory import loading_bytes
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.native.packed_format import MatrixEntry, nonzero_of_dense
from sparsedraft.native.weight_reader import WeightReader, reader_of

LINEARS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class NativeModel:
    """The extension's model, and what the package needs to know about it."""

    handle: Any
    config: PretrainedConfig
    head_ids: Tensor | None  # the token of each row, where the head is trimmed or in an order of its own
    layouts: dict[str, str] = field(default_factory=dict)  # of each matrix, such as "N:8 i8"
    macs_per_token: int = 0
    linear_nonzero: int = 0  # weights of the decoder linears that are not zero
    linear_weights: int = 0  # weights of the decoder linears
    other_parameters: int = 0  # embedding, head, norms, biases
    other_nonzero: int = 0
    cache_bytes_per_token: int = 0  # of keys and values
    head_base: int = 0  # so many rows of the head are those of the most frequent tokens; 0: it does not follow the text


def check_prompts_fit(tokens: Sequence[tuple[NativeModel, int]]) -> None:
    """UserError where the keys and values that each model keeps of so many tokens do not fit in free memory."""
    needed, free = sum(model.cache_bytes_per_token * count for model, count in tokens), available_memory()
    if free is not None and needed > free:
        most = max(count for _, count in tokens)
        raise UserError(
            f"keys and values of {most:,} tokens need {needed / 2**30:.2f} GiB of memory, and {free / 2**30:.2f} GiB "
            "are free: shorten the prompts, give fewer at once, or ask for shorter answers."
        )


def native_model(folder: Path, cache: str = "int16", fine_inputs: bool = False) -> NativeModel:
    """The model in `folder`, laid out for this CPU; its sequences keep keys and values as `cache` says: int16 or int8.

    `fine_inputs`: weights that are multiplied with inputs rounded to 8 bits are also multiplied with what that rounding
    loses, which makes it about 16 bits, and slower. Raises UserError where the engine does not run its
    architecture, where weights are missing or damaged, and where it would not fit in memory.
    """
    whole = checkpoint.read_config(folder)
    config = whole.get_text_config()
    architecture.check_numbers(folder, config)
    architecture.check_layer_types(folder, config)
    why = architecture.unsupported(whole)
    if why is None and not is_packed(folder) and (quantised := quantizers.format_of(whole, Shards(folder))):
        why = architecture.QUANTISED.format(quantised)
    if why:
        raise Unsupported(f"model {folder} cannot run natively, because {why}: give --runtime transformers.")
    extension()  # raises before any work is done
    reader = reader_of(folder)
    _check_memory(folder, reader)
    return _Builder(folder, config, reader).model(architecture.Precision(cache, fine_inputs))


def _check_memory(folder: Path, reader: WeightReader) -> None:
    # of a plain checkpoint: tiles are padded, and one matrix is there twice
    needed = loading_bytes(reader) if isinstance(reader, PackedReader) else round(reader.bytes * 1.1)
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"model {folder} needs {needed / 2**30:.2f} GiB of memory, and {free / 2**30:.2f} GiB are free: pack it "
            "to int4 or int8, or close something."
        )


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if line is None else int(line.split()[1]) * 1024


class _Builder:
    """Reads the weights of one model, lays its matrices out, and counts both."""

    def __init__(self, folder: Path, config: PretrainedConfig, reader: WeightReader) -> None:
        self.folder, self.config, self.reader = folder, config, reader
        self.layouts: dict[str, str] = {}
        self.linear_nonzero = self.linear_weights = self.other_parameters = self.other_nonzero = 0
        embeddings = sorted(name for name in reader.names if name.endswith("embed_tokens.weight"))
        if not embeddings:
            raise Unsupported(f"model {folder} has no embed_tokens: give a whole checkpoint.")
        self.prefix = embeddings[0].removesuffix("embed_tokens.weight")
        # the embedding is looked at while nothing else is in memory, which it then leaves
        self.vocabulary = self._look_at(embeddings[0])
        self.cache = LayoutCache(folder, reader.bytes) if isinstance(reader, PackedReader) else None

    def _look_at(self, embedding: str) -> int:
        """Check and count what is stored of the embedding; its rows."""
        entry, tensors = self.reader.table(embedding)
        if isinstance(self.reader, PackedReader):
            nonzero = nonzero_of_dense(embedding.removesuffix(".weight"), entry, tensors)
        else:
            nonzero = int(torch.count_nonzero(tensors["values"]))
        self.other_parameters += entry.rows * entry.columns
        self.other_nonzero += nonzero
        return entry.rows

    def model(self, precision: architecture.Precision) -> NativeModel:
        config = self.config
        rope_names = sorted(architecture.ropes(config))
        head_ids, base = self.reader.head_ids(), self.reader.head_base()
        if base is not None:
            head_ids = self._by_frequency(base)
        head, head_rows = self._head(
            head_ids, ordered=base is not None
        )  # the largest matrix first: on its way it takes three times its size
        layers = [self._layer(i, rope_names) for i in range(config.num_hidden_layers)]
        if not layers or layers[0]["q"].rows != config.num_attention_heads * architecture.head_dim_of(config):
            raise UserError(f"model {self.folder} has weights that its config.json does not describe: copy both again.")
        # only now: its rotary tables are as large as the config says, which the weights have just confirmed
        settings = architecture.settings_of(self.folder, config, precision)
        embedding = layout.embedding(*self.reader.table(f"{self.prefix}embed_tokens.weight"))
        final_norm = _numpy(self._vector(f"{self.prefix}norm.weight"))
        try:
            handle = extension().model(settings, embedding, layers, final_norm, head)
        except ValueError as error:
            raise UserError(
                f"model {self.folder} has weights that its config.json does not describe ({error}): copy both again."
            ) from None
        if self.cache is not None:
            self.cache.write()
        return NativeModel(
            handle,
            config,
            head_ids,
            self.layouts,
            self.linear_nonzero + (head_rows if base is None else len(base)) * config.hidden_size,
            self.linear_nonzero,
            self.linear_weights,
            self.other_parameters,
            self.other_nonzero,
            bytes_per_token(len(layers), config.num_key_value_heads, architecture.head_dim_of(config))[precision.cache],
            0 if base is None else len(base),
        )

    def _by_frequency(self, base: Tensor) -> Tensor:
        """All tokens, those of `base` first."""
        self._check_ids(base)
        rest = torch.ones(self.vocabulary, dtype=torch.bool)
        rest[base] = False
        return torch.cat([base, rest.nonzero()[:, 0]])

    def _check_ids(self, ids: Tensor) -> None:
        if int(ids[-1]) >= self.vocabulary:
            raise UserError(f"model {self.folder} has head id {int(ids[-1])} outside of its vocabulary: pack it again.")

    def _layer(self, index: int, rope_names: list[str]) -> dict[str, Any]:
        """What the extension takes for layer `index`."""
        base = f"{self.prefix}layers.{index}."
        gemma = architecture.is_gemma(self.config)
        layer_type = architecture.layer_type_of(self.config, index)
        layer: dict[str, Any] = {key: self._linear(f"{base}{name}") for key, name in LINEARS.items()}
        for key in ("q", "k", "v", "o"):
            layer[f"{key}_bias"] = self._optional(f"{base}{LINEARS[key]}.bias")
        for key in ("gate", "up", "down"):
            if f"{base}{LINEARS[key]}.bias" in self.reader.names:
                raise Unsupported(f"model {self.folder} has a bias in {LINEARS[key]}: give --runtime transformers.")
        before_mlp = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        layer["input_norm"] = _numpy(self._vector(f"{base}input_layernorm.weight"))
        layer["attention_norm"] = _numpy(self._vector(f"{base}{before_mlp}.weight"))
        layer["after_attention"] = self._optional(f"{base}post_attention_layernorm.weight") if gemma else None
        layer["after_mlp"] = self._optional(f"{base}post_feedforward_layernorm.weight") if gemma else None
        layer["q_norm"] = self._optional(f"{base}self_attn.q_norm.weight")
        layer["k_norm"] = self._optional(f"{base}self_attn.k_norm.weight")
        layer["window"] = architecture.window_of(self.config, layer_type)
        layer["rope"] = rope_names.index(layer_type) if layer_type in rope_names else 0
        return layer

    def _vector(self, name: str) -> Tensor:
        if name not in self.reader.names:
            raise Unsupported(f"model {self.folder} lacks {name}: give a whole checkpoint.")
        vector = self.reader.vector(name)
        self._count(vector)
        return vector

    def _optional(self, name: str) -> Any:
        return _numpy(self._vector(name)) if name in self.reader.names else None

    def _count(self, tensor: Tensor) -> None:
        """Count a tensor that is no decoder linear."""
        self.other_parameters += tensor.numel()
        self.other_nonzero += int(torch.count_nonzero(tensor))

    def _linear(self, name: str) -> Any:
        matrix, nonzero, size = self._matrix(name, name)
        self.linear_nonzero += nonzero
        self.linear_weights += size
        return matrix

    def _matrix(self, name: str, stored: str, rows: Tensor | None = None) -> tuple[Any, int, int]:
        """(what is `stored`, or these `rows` of it, from the cache or laid out; its non-zeros; its weights).

        `name`: what the cache and the layouts call it.
        """
        entry, scale = None, None
        if isinstance(self.reader, PackedReader) and (entry := self.reader.entries.get(stored)):
            scale = self.reader.scale(stored)
            if rows is not None:
                entry, scale = replace(entry, rows=len(rows)), None if scale is None else scale[rows]
        if self.cache is not None and entry is not None:
            cached = self.cache.matrix(name, entry, scale)  # of this entry and scale, or None
            if cached is not None:
                matrix, self.layouts[name], nonzero = cached
                return matrix, nonzero, entry.rows * entry.columns
        try:
            matrix, self.layouts[name], nonzero = self._laid_out(stored, entry, rows)
        except ValueError as error:
            raise UserError(f"model {self.folder} cannot be laid out: {stored}: {error}.") from None
        if self.cache is not None:
            self.cache.add(name, matrix, nonzero)
        return matrix, nonzero, matrix.rows * matrix.columns

    def _laid_out(self, stored: str, entry: MatrixEntry | None, rows: Tensor | None) -> tuple[Any, str, int]:
        """(the matrix, the label of its layout, its number of non-zeros)."""
        if isinstance(self.reader, PackedReader) and entry and (entry.values, entry.kind) == ("int4", "dense"):
            tensors = self.reader.tensors(stored)
            if rows is not None:
                tensors = {part: tensor[rows] for part, tensor in tensors.items()}
            return layout.lay_out_nibbles(stored, entry, tensors)
        found, kind = self.reader.matrix(f"{stored}.weight")
        found = found if rows is None else found.rows(rows)
        return *layout.lay_out(found, kind), found.nonzero

    def _head(self, ids: Tensor | None, *, ordered: bool) -> tuple[Any, int]:
        """The head's matrix, trimmed to `ids` or with all its rows in their order, and how many those are."""
        if ids is not None and not ordered:
            self._check_ids(ids)
        own = not self.config.tie_word_embeddings
        if own and "lm_head.weight" not in self.reader.names:
            raise UserError(
                f"model {self.folder} has no lm_head and tie_word_embeddings false in its config.json: copy both again."
            )
        name = "lm_head" if own else f"{self.prefix}embed_tokens"
        stored_so = own and not ordered  # a trimmed head of its own is stored trimmed
        called = "lm_head by frequency" if ordered else "lm_head"  # to the cache, which does not look at the order
        matrix, nonzero, size = self._matrix(called, name, None if stored_so else ids)
        if own:
            self.other_parameters += size
            self.other_nonzero += nonzero
            if ids is not None and len(ids) != matrix.rows:
                raise UserError(
                    f"model {self.folder} has a head of {matrix.rows} rows for {len(ids)} head ids: pack it again."
                )
        return matrix, matrix.rows


def _numpy(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.contiguous().float().numpy()
