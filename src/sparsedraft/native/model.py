"""A checkpoint, packed or plain, as a model of the native engine: llama, mistral, qwen2, qwen3, gemma3 (text)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.base.errors import Unsupported, UserError
from sparsedraft.models import checkpoint, quantizers
from sparsedraft.models.decoder import context_of
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import building, skeleton
from sparsedraft.native import kinds
from sparsedraft.native.extension import extension
from sparsedraft.native.packed import Entry
from sparsedraft.native.relaid import Relaid
from sparsedraft.native.weights import PackedWeights, Weights, is_packed, weights_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
ROPES = ("default", "linear", "llama3", "yarn")  # rotary embeddings that do not change with the length
QUANTISED = "its weights are quantised ({})"
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "vocab_size", "sliding_window",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "query_pre_attn_scalar", "final_logit_softcapping")
LINEARS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class NativeModel:
    """The extension's model, and what the rest needs to know of it."""

    handle: Any
    config: PretrainedConfig
    head_ids: Tensor | None  # the tokens of a trimmed head
    runs: dict[str, str] = field(default_factory=dict)  # how each matrix runs, such as "N:8 int8"
    macs_per_token: int = 0
    nonzero: int = 0  # weights of the decoder linears that are not zero
    weights: int = 0  # weights of the decoder linears
    others: int = 0  # parameters that are not theirs: embedding, head, norms, biases
    others_nonzero: int = 0


def unsupported(config: PretrainedConfig) -> str | None:
    """Why the engine does not run a model of `config`; None where it does."""
    if quantised := quantizers.method_of(config):
        return QUANTISED.format(quantised)
    config = config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"its architecture {config.model_type} is not one of {', '.join(FAMILIES)}"
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in ("silu", "gelu_pytorch_tanh"):
        return f"its activation is {activation}"
    for rope in _ropes(config).values():
        if rope.get("rope_type", "default") not in ROPES:
            return f"its rotary embedding is {rope.get('rope_type')}"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            return "only a part of each head is rotated"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    return None


def _ropes(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Rotary embeddings by the kind of layer; one under "" where all layers share it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = {k: v for k, v in parameters.items() if isinstance(v, dict)}
    kinds_of = getattr(config, "layer_types", None) or nested
    return {k: v for k, v in nested.items() if k in kinds_of} or {"": parameters}


def native_model(folder: Path) -> NativeModel:
    """The model in `folder`, re-laid for this CPU.

    Raises UserError where the engine does not run its architecture, where weights are missing or damaged, and where it
    would not fit in memory.
    """
    whole = checkpoint.read_config(folder)
    config = whole.get_text_config()
    _check_numbers(folder, config)
    _check_layer_types(folder, config)
    why = unsupported(whole)
    if why is None and not is_packed(folder) and (kind := quantizers.format_of(whole, Shards(folder))):
        why = QUANTISED.format(kind)
    if why:
        raise Unsupported(f"model {folder} cannot run natively, because {why}: give --runtime transformers.")
    extension()  # before any work
    weights = weights_of(folder)
    needed, free = round(weights.bytes * 1.1), available_memory()  # tiles are padded; one matrix is held twice
    if free is not None and needed > free:
        raise UserError(
            f"model {folder} needs {needed / 2**30:.2f} GiB of memory, and {free / 2**30:.2f} GiB are free: pack it "
            "to int8, or close something."
        )
    return _Builder(folder, config, weights).model()


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024


class _Builder:
    def __init__(self, folder: Path, config: PretrainedConfig, weights: Weights) -> None:
        self.folder, self.config, self.weights = folder, config, weights
        self.relaid = Relaid(folder, weights.bytes) if isinstance(weights, PackedWeights) else None
        self.runs: dict[str, str] = {}
        self.nonzero = self.total = self.others = self.others_nonzero = 0
        found = sorted(name for name in weights.names if name.endswith("embed_tokens.weight"))
        if not found:
            raise Unsupported(f"model {folder} has no embed_tokens: give a whole checkpoint.")
        self.prefix = found[0].removesuffix("embed_tokens.weight")

    def model(self) -> NativeModel:
        config = self.config
        names = sorted(set(_ropes(config)))
        layers = [self._layer(i, names) for i in range(config.num_hidden_layers)]
        if not layers or layers[0]["q"].rows != config.num_attention_heads * _head_dim(config):
            raise UserError(f"model {self.folder} has weights that its config.json does not describe: copy both again.")
        rotary = _rotary(config)  # its tables are as large as the config says, which is checked by now
        if lacking := next((n for n in names if n and not hasattr(rotary, f"{n}_inv_freq")), None):
            raise UserError(
                f"model {self.folder} has no layers of the kind {lacking} that rope_parameters names: mend it."
            )
        frequencies = [getattr(rotary, f"{n}_inv_freq" if n else "inv_freq").float().numpy() for n in names]
        scalings = [float(getattr(rotary, f"{n}_attention_scaling" if n else "attention_scaling")) for n in names]
        gemma = config.model_type == "gemma3_text"
        head_dim = _head_dim(config)
        scalar = getattr(config, "query_pre_attn_scalar", None) or head_dim
        settings = {
            "hidden": config.hidden_size, "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads, "head_dim": head_dim, "intermediate": config.intermediate_size,
            "max_length": context_of(config) or 0, "eps": config.rms_norm_eps,
            "attention_scale": scalar**-0.5, "embedding_scale": _embedding_scale(config) if gemma else 1.0,
            "softcap": getattr(config, "final_logit_softcapping", None) or 0.0,
            "gelu": "gelu" in (getattr(config, "hidden_activation", None) or config.hidden_act),
            "norm_one_more": gemma, "inv_freq": frequencies, "rope_scaling": scalings,
        }  # fmt: skip
        embedding, scale, _ = self.weights.matrix(f"{self.prefix}embed_tokens.weight")
        self._count(embedding)
        head_ids = self.weights.head_ids()
        head, head_rows = self._head(embedding, scale, head_ids)
        final_norm = _numpy(self._vector(f"{self.prefix}norm.weight"))
        native = extension()
        try:
            handle = native.model(
                settings, kinds.raw(embedding), kinds.NATIVE_NAMES[embedding.dtype], _numpy(scale), layers, final_norm,
                head,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(
                f"model {self.folder} has weights that its config.json does not describe ({error}): copy both again."
            ) from None
        if self.relaid is not None:
            self.relaid.write()
        macs = self.nonzero + head_rows * config.hidden_size
        return NativeModel(
            handle, config, head_ids, self.runs, macs, self.nonzero, self.total, self.others, self.others_nonzero
        )

    def _layer(self, index: int, ropes: list[str]) -> dict[str, Any]:
        base = f"{self.prefix}layers.{index}."
        gemma = self.config.model_type == "gemma3_text"
        kind = (getattr(self.config, "layer_types", None) or ["full_attention"] * (index + 1))[index]
        sliding = kind == "sliding_attention" or (self.config.model_type == "mistral" and self.config.sliding_window)
        layer: dict[str, Any] = {key: self._linear(f"{base}{name}") for key, name in LINEARS.items()}
        for key in ("q", "k", "v", "o"):
            layer[f"{key}_bias"] = self._optional(f"{base}{LINEARS[key]}.bias")
        for key in ("gate", "up", "down"):
            if f"{base}{LINEARS[key]}.bias" in self.weights.names:
                raise Unsupported(f"model {self.folder} has a bias in {LINEARS[key]}: give --runtime transformers.")
        after = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        layer["input_norm"] = _numpy(self._vector(f"{base}input_layernorm.weight"))
        layer["attention_norm"] = _numpy(self._vector(f"{base}{after}.weight"))
        layer["after_attention"] = self._optional(f"{base}post_attention_layernorm.weight") if gemma else None
        layer["after_mlp"] = self._optional(f"{base}post_feedforward_layernorm.weight") if gemma else None
        layer["q_norm"] = self._optional(f"{base}self_attn.q_norm.weight")
        layer["k_norm"] = self._optional(f"{base}self_attn.k_norm.weight")
        layer["window"] = (self.config.sliding_window or 0) if sliding else 0
        layer["rope"] = ropes.index(kind) if kind in ropes else 0
        return layer

    def _vector(self, name: str) -> Tensor:
        if name not in self.weights.names:
            raise Unsupported(f"model {self.folder} lacks {name}: give a whole checkpoint.")
        found = self.weights.vector(name)
        self._count(found)
        return found

    def _count(self, other: Tensor) -> None:
        self.others += other.numel()
        self.others_nonzero += int(torch.count_nonzero(other))

    def _optional(self, name: str) -> Any:
        return _numpy(self._vector(name)) if name in self.weights.names else None

    def _linear(self, name: str) -> Any:
        packed = self.weights if isinstance(self.weights, PackedWeights) else None
        entry, scale = (packed.entries.get(name), packed.scale(name)) if packed else (None, None)
        matrix, nonzero, size = self._matrix(name, entry, scale, lambda: self.weights.matrix(f"{name}.weight"))
        self.nonzero += nonzero
        self.total += size
        return matrix

    def _matrix(
        self,
        name: str,
        entry: Entry | None,
        scale: Tensor | None,
        read: Callable[[], tuple[Tensor, Tensor | None, str]],
    ) -> tuple[Any, int, int]:
        """(the matrix that `read` gives, as it was kept or laid out, its values that are not zero, all of them).

        What is kept must be of this `entry` and `scale`.
        """
        kept = self.relaid.matrix(name, entry, scale) if self.relaid and entry else None
        if kept is not None:
            matrix, self.runs[name], nonzero = kept
            return matrix, nonzero, entry.rows * entry.columns  # type: ignore[union-attr]
        values, scale, kind = read()
        nonzero, size = int(torch.count_nonzero(values)), values.numel()
        try:
            matrix, self.runs[name] = kinds.lay_out(values, scale, kind)
        except ValueError as error:
            raise UserError(f"model {self.folder} cannot be laid out: {name}: {error}.") from None
        if self.relaid is not None:
            self.relaid.add(name, matrix, nonzero)
        return matrix, nonzero, size

    def _head(self, embedding: Tensor, scale: Tensor | None, ids: Tensor | None) -> tuple[Any, int]:
        """The head's matrix, trimmed to `ids`, and its rows."""
        kind = "dense"
        if ids is not None and int(ids[-1]) >= embedding.shape[0]:
            raise UserError(f"model {self.folder} has head id {int(ids[-1])} outside of its vocabulary: pack it again.")
        if "lm_head.weight" in self.weights.names and not self.config.tie_word_embeddings:
            embedding, scale, kind = self.weights.matrix("lm_head.weight")
            self._count(embedding)
            if ids is not None and len(ids) != embedding.shape[0]:
                raise UserError(
                    f"model {self.folder} has a head of {embedding.shape[0]} rows for {len(ids)} head ids: "
                    "pack it again."
                )
        elif ids is not None:
            embedding, scale = embedding[ids], None if scale is None else scale[ids]
        entry = kinds.entry_of(embedding, kind)
        matrix, _, _ = self._matrix("lm_head", entry, scale, lambda: (embedding, scale, kind))
        return matrix, embedding.shape[0]


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _check_numbers(folder: Path, config: PretrainedConfig) -> None:
    """UserError for a size or another number of config.json that no model can have."""
    for name in (*SIZES, *NUMBERS):
        value = getattr(config, name, None)
        kind, most = (int, 2**31) if name in SIZES else (int | float, 1e30)
        right = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value < most
        if value is not None and not right:
            raise UserError(
                f"model {folder} has {name} {value!r} in config.json, which no model can have: copy it again."
            )


def _check_layer_types(folder: Path, config: PretrainedConfig) -> None:
    """Unsupported for a list of the layers' kinds that is not one for each layer; some families do not read it."""
    found = getattr(config, "layer_types", None)
    if found is not None and (not isinstance(found, list) or len(found) != config.num_hidden_layers):
        said = f"{len(found)} layer_types" if isinstance(found, list) else f"layer_types {found!r:.40}"
        raise Unsupported(
            f"model {folder} has {said} in config.json for {config.num_hidden_layers} layers: copy it again."
        )


def _rotary(config: PretrainedConfig) -> Any:
    """The rotary embedding of `config`; its class is that of a model of the same family and next to no size."""
    small = copy.deepcopy(config)
    small.hidden_size = small.head_dim = small.intermediate_size = small.vocab_size = 8
    small.num_hidden_layers = small.num_attention_heads = small.num_key_value_heads = 1
    if getattr(config, "layer_types", None):
        small.layer_types = config.layer_types[:1]
    small.pad_token_id = None
    modules = skeleton(small).named_modules()
    kind = type(next(module for name, module in modules if name.endswith("rotary_emb")))
    with building(config):
        return kind(config)


def _embedding_scale(config: PretrainedConfig) -> float:
    """Gemma multiplies embeddings by √hidden, rounded to the dtype of its weights; in float32 it is this."""
    return float(torch.tensor(config.hidden_size**0.5))


def _numpy(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.contiguous().float().numpy()
