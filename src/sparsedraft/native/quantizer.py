"""Packed folders in transformers' from_pretrained: quantization method "sparsedraft", once `register` was called."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsedraft.base.errors import UserError
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.native.modules import PackedEmbedding, PackedHead, PackedLinear, PackedModule
from sparsedraft.native.packed_folder import HEAD_BASE, HEAD_IDS, PackedReader, is_packed
from sparsedraft.native.packed_format import PARTS, MatrixEntry
from sparsedraft.native.stored_matrix import VALUE_TYPES

METHOD = "sparsedraft"


class SparsedraftConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed folder's config.json; `weights`, a key of VALUE_TYPES: the type of values."""

    def __init__(self, weights: str = "int8", **unknown: Any) -> None:
        if weights not in VALUE_TYPES:
            raise UserError(
                f"quantization_config.weights is {weights!r}, not one of {', '.join(VALUE_TYPES)}: "
                "pack the checkpoint again."
            )
        self.quant_method: Any = METHOD
        self.weights = weights


class SparsedraftQuantizer(HfQuantizer):
    """Puts packed modules into a model before its tensors are loaded, and checks them afterwards.

    Raises UserError where the folder is not a packed one, does not fit its config.json, or is damaged.
    """

    requires_calibration = True  # to transformers: only what was packed before can be loaded

    def __init__(self, quantization_config: SparsedraftConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._stored: set[str] = set()  # names of tensors that keep their dtypes
        self._head_ids: Tensor | None = None

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The dtype that a stored tensor is cast to; None, which keeps its own, for parts of packed matrices."""
        if not self._stored.isdisjoint(converter.target_patterns):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if not checkpoint_files:
            raise UserError("a packed checkpoint was given as a state dict: give its folder.")
        folder = Path(checkpoint_files[0]).parent
        if not is_packed(folder):
            raise UserError(
                f"packed model {folder} has no packed.json: fetch the whole folder, as sparsedraft.load does."
            )
        with torch.device("cpu"):  # transformers builds the model on the meta device; what is read must have values
            reader = PackedReader(folder)
            self._head_ids = reader.head_ids()
        dtype = model.dtype
        for name in reader.entries:
            self._replace(model, name, reader, dtype)
        self._tie(model, dtype)
        for name in decoder_linears(model):
            raise UserError(f"packed folder {folder} does not pack {name}: pack the checkpoint again.")
        head = model.get_output_embeddings()
        if self._head_ids is not None and head and not isinstance(head, PackedHead):
            raise UserError(f"packed folder {folder} has head ids for a head that it does not pack: pack it again.")
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()), re.escape(HEAD_IDS), re.escape(HEAD_BASE),
        }  # fmt: skip
        return model

    def _replace(self, model: PreTrainedModel, name: str, reader: PackedReader, dtype: torch.dtype) -> None:
        """Put a packed module in the place of the one that the header calls `name`."""
        prefix = f"{model.base_model_prefix}."
        modules: dict[str, Any] = dict(model.named_modules())
        full = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in modules), None)
        if full is None:
            if model.get_output_embeddings() is None:  # only the base model is loaded
                return
            raise UserError(f"packed folder {reader.folder} packs {name}, which its config.json lacks: pack it again.")
        original, entry = modules[full], reader.entries[name]
        with torch.device("cpu"):
            parts = {part: t.to("meta") for part, t in reader.tensors(name).items()}
        ids = self._head_ids if original is model.get_output_embeddings() else None
        module, shape = _packed_module(name, entry, parts, original, dtype, ids, reader.folder)
        fits = ids is None or int(ids[-1]) < original.out_features
        if (entry.rows, entry.columns) != shape or not fits:
            raise UserError(
                f"packed folder {reader.folder} has {name} of {entry.rows} rows and {entry.columns} columns, "
                f"where its config.json needs {shape[0]} and {shape[1]}: pack the checkpoint again."
            )
        model.set_submodule(full, module)
        self._stored |= {f"{full}.{part}" for part in PARTS}

    def _tie(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Let heads that are tied to a packed embedding read its rows: it has no parameter that could be shared."""
        for target, source in list(model.all_tied_weights_keys.items()):
            embedding = model.get_submodule(source.rpartition(".")[0])
            if not isinstance(embedding, PackedEmbedding):
                continue
            name = target.rpartition(".")[0]
            original, ids, entry = model.get_submodule(name), self._head_ids, embedding.entry
            if not isinstance(original, nn.Linear):
                raise UserError(f"packed embedding {source} is tied to {name}, which is no linear: load it unpacked.")
            if ids is not None:
                if int(ids[-1]) >= entry.rows:
                    raise UserError(
                        f"packed head has id {int(ids[-1])} outside of its vocabulary of {entry.rows}: pack it again."
                    )
                entry = replace(entry, rows=len(ids))
            model.set_submodule(name, PackedHead(name, entry, {}, original, dtype, ids=ids, tied=embedding))
            del model.all_tied_weights_keys[target]
            model._tied_weights_keys = {k: v for k, v in (model._tied_weights_keys or {}).items() if k != target}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        packed = [module for module in model.modules() if isinstance(module, PackedModule)]
        if not any(buffer.is_meta for module in packed for buffer in module.buffers()):  # values were loaded
            for module in packed:
                module.prepare()
        model.requires_grad_(False)  # the gradients of norms would need dequantised weights
        self._stored, self._head_ids = set(), None
        return model

    def is_serializable(self) -> bool:
        """Never: raises UserError, which says what to do instead."""
        raise UserError(
            "a packed model cannot be saved: copy its folder, or call dequantize() first to have it unpacked."
        )

    @property
    def is_trainable(self) -> bool:
        return False

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> PreTrainedModel:
        """An ordinary model of the same weights. Raises UserError where its head is trimmed: no linear does that."""
        packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedModule)}
        if any(isinstance(module, PackedHead) and module.ids is not None for module in packed.values()):
            raise UserError(
                "a packed model with a trimmed head cannot be dequantised: load the checkpoint it came from."
            )
        vars(model).pop("_tied_weights_keys", None)  # back to the class's
        for name, module in packed.items():
            plain: Any = module.original[0]
            plain.weight = nn.Parameter(module.weight.to(dtype).clone())
            if isinstance(module, PackedLinear):
                plain.bias = module.bias
            elif module.embed_scale is not None:
                plain.embed_scale = torch.tensor(module.embed_scale, device=plain.weight.device)
            model.set_submodule(name, plain)
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.tie_weights()
        return model.to(dtype).requires_grad_(True).eval()


def _packed_module(
    name: str,
    entry: MatrixEntry,
    parts: dict[str, Tensor],
    original: nn.Module,
    dtype: torch.dtype,
    head_ids: Tensor | None,
    folder: Path,
) -> tuple[PackedModule, tuple[int, int]]:
    """(the packed module that replaces `original`, the rows and columns that it must have)."""
    if type(original) is nn.Linear:
        if head_ids is None:
            linear = PackedLinear(name, entry, parts, original, dtype)
            return linear, (original.out_features, original.in_features)
        head = PackedHead(name, entry, parts, original, dtype, ids=head_ids)
        return head, (len(head_ids), original.in_features)
    if type(original) is nn.Embedding or hasattr(original, "scalar_embed_scale"):
        embedding: Any = original
        shape = (embedding.num_embeddings, embedding.embedding_dim)
        return PackedEmbedding(name, entry, parts, embedding, dtype), shape
    raise UserError(
        f"packed folder {folder} packs {name}, which is a {type(original).__name__}: load the checkpoint it came from."
    )


def register() -> None:
    """Tell transformers how packed folders are loaded. It can be called any number of times."""
    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(SparsedraftConfig)
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(SparsedraftQuantizer)
