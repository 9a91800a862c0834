"""Writes a packed folder: each matrix packed, all else as it is in the checkpoint."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object, write_json
from sparsedraft.maths.quantization import Codes
from sparsedraft.models import checkpoint, claims, rounded, shards
from sparsedraft.models.decoder import decoder_linears, final_norm
from sparsedraft.models.gguf.blocks import BlockFile
from sparsedraft.models.shards import SHARD, Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.weight_files import INDEX
from sparsedraft.native.packed_folder import FORMAT, HEAD_BASE, HEAD_IDS, HEADER, version_of
from sparsedraft.native.packed_format import MatrixEntry, kind_of, pack_matrix, scale_group, stored_bytes, unpack_matrix
from sparsedraft.native.q6_k import check_possible
from sparsedraft.stages.pack.calibrated import CalibratedCodes
from sparsedraft.stages.pack.kept import check_kept, kept_matrix

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
AS_STORED = "as stored"  # in the place of a type: the matrix has another name, and is stored as it is in the checkpoint


@dataclass(frozen=True)
class Types:
    """What values are packed as, and the bits of the activations that int8 is multiplied with."""

    weights: str
    head: str
    embedding: str
    activations: int


class PackedWriter:
    """Packs the checkpoint in `folder`, its values as `types` says.

    `on_text`: int4 is rounded on text; `write` is then given the codes. `kept`: the GGUF file whose matrices stay as
    they are.
    Raises UserError where the checkpoint is not whole, or lies about its mask, or holds what does not fit.
    """

    def __init__(self, folder: Path, types: Types, on_text: bool = False, kept: BlockFile | None = None) -> None:
        self.folder, self.types, self.on_text, self.kept = folder, types, on_text, kept
        self.shards = Shards(folder)
        self.claim = claims.claim_of(folder) or {"linears": {}}
        model = skeleton(checkpoint.read_config(folder))
        self.prefix = model.base_model_prefix
        self.linears = {self.shards.find(f"{name}.weight", self.prefix): name for name in decoder_linears(model)}
        self.config = checkpoint.read_config(folder).get_text_config()
        self.names = {self.shards.find(name, self.prefix): name for name in model.state_dict()}
        lacking = [name for tensor, name in self.linears.items() if tensor is None]
        if lacking:
            raise UserError(f"model {folder} lacks {lacking[0]}: give a whole checkpoint.")
        if kept is not None:
            check_kept(kept, self._kept_names(kept))
        for name, values in ((self._embedding(), types.embedding), (self._head(), types.head)):
            if name is not None and values == "q6_k":
                check_possible(self.shards.shapes[name][1], f"model {folder}, {name}:")
        self.calibrated: CalibratedCodes | None = None  # what `write` was given
        self.entries: dict[str, Any] = {}
        self.error = 0.0  # largest rounding error, as a share of the row's largest value
        self.bytes = self.dense_bytes = self.linear_bytes = self.linear_dense_bytes = 0

    def _kept_names(self, kept: BlockFile) -> list[str]:
        """The matrices that are read from `kept`."""
        others = [name.removesuffix(".weight") for name in (self._embedding(), HEAD) if name in self.shards.files]
        return [*self.linears.values(), *(name for name in others if kept.kind(name) or not self.tied)]

    def vocabulary(self) -> int:
        """Rows of the embedding; UserError where there is none."""
        embedding = self._embedding()
        if embedding is None:
            raise UserError(
                f"model {self.folder} has no embed_tokens, so its head cannot be trimmed: leave out --head-tokens."
            )
        return self.shards.shapes[embedding][0]

    def head_on_text(self) -> Tensor | None:
        """The head's weight [vocabulary, hidden] as stored, where it is rounded on text; None where it is not.

        UserError where the states that reach it are not known.
        """
        name = self._head()
        if not (self.on_text and self.types.head == "int4" and name is not None):
            return None
        _, norm = final_norm(skeleton(checkpoint.read_config(self.folder)))
        weight = self.shards.tensor(name)
        if getattr(norm, "weight", weight[0]).shape != weight.shape[1:]:
            raise UserError(
                f"model {self.folder} has a head of other inputs than its final norm gives: give --head-weights int8."
            )
        return weight

    def _embedding(self) -> str | None:
        return next((name for name in self.shards.files if name.endswith(EMBEDDING)), None)

    def _head(self) -> str | None:
        name = self._embedding() if self.tied else HEAD
        return name if name in self.shards.files else None

    @property
    def tied(self) -> bool:
        """Whether the checkpoint's head is its embedding."""
        return bool(self.config.tie_word_embeddings)

    @property
    def separate(self) -> bool:
        """Whether a tied head is stored beside the embedding, because the two are rounded differently."""
        differ = self.types.head != self.types.embedding or (self.on_text and self.types.head == "int4")
        return differ and self.tied and self._embedding() is not None

    def write(
        self,
        work: Path,
        head_ids: Tensor | None = None,
        calibrated: CalibratedCodes | None = None,
        *,
        follows: bool = False,
    ) -> dict[str, Any]:
        """Write the folder `work`, the head trimmed to `head_ids`; its kinds, bytes and rounding error.

        `calibrated`: the codes of int4; None: those of the checkpoint, or of least squares. `follows`: the head stays
        whole, and `head_ids` are the tokens that a draft always looks at.
        """
        self.calibrated = calibrated
        if follows and head_ids is not None:
            self._write_tensors(work, None, {HEAD_BASE: head_ids})
        else:
            self._write_tensors(work, head_ids, {} if head_ids is None else {HEAD_IDS: head_ids})
        weights = self._weights()
        header = {"format": FORMAT, "version": version_of(self.entries), "weights": weights, "linears": self.entries}
        write_json(work / HEADER, header)
        shards.copy_side_files(self.folder, work)
        checkpoint.write_config(self.folder, work)
        config = read_object(work / "config.json")
        config["quantization_config"] = {"quant_method": "sparsedraft", "weights": weights}
        if self.separate:
            for part in (config, config.get("text_config")):
                if isinstance(part, dict):
                    part["tie_word_embeddings"] = False
        write_json(work / "config.json", config)
        embedding = self._values_of(EMBEDDING)
        kinds = Counter(entry["kind"] for name, entry in self.entries.items() if name in self.linears.values())
        return {
            "weights": self.types.weights,
            "head_weights": embedding if self.tied and not self.separate else self._values_of(HEAD),
            "embedding_weights": embedding,
            "kinds": dict(kinds),
            "bytes": self.bytes,
            "dense_f16_bytes": self.dense_bytes,
            "linear_bytes": self.linear_bytes,
            "linear_dense_f16_bytes": self.linear_dense_bytes,
            "rounding_error": self.error,
        }

    def _values_of(self, matrix: str) -> str:
        """The type of the values of the packed embedding or head."""
        packed = (entry["values"] for name, entry in self.entries.items() if f"{name}.weight".endswith(matrix))
        return next(packed, AS_STORED)

    def _weights(self) -> str:
        """The type of values of most linears."""
        inside = [entry["values"] for name, entry in self.entries.items() if name in self.linears.values()]
        return self.types.weights if self.kept is None else Counter(inside).most_common(1)[0][0]

    def _write_tensors(self, work: Path, head_ids: Tensor | None, pending: dict[str, Tensor]) -> None:
        """All tensors, in files of bounded size, and those that are `pending`."""
        files: list[dict[str, int]] = []  # of each file: the bytes of its tensors

        def flush() -> None:
            if pending:
                name = f"model-{len(files) + 1:05}.safetensors"
                shards.save_file(pending, work / name, metadata={"format": "pt"})
                files.append({key: t.numel() * t.element_size() for key, t in pending.items()})
                pending.clear()

        with track("packing", len(self.shards.files), "tensors") as tracker:
            for name in sorted(self.shards.files, key=self._name):
                tracker.advance(1)
                if name == HEAD and self.tied:
                    continue
                pending.update(self._packed(name, head_ids))
                if self.separate and name.endswith(EMBEDDING):
                    pending.update(self._packed_head(self.shards.tensor(name), head_ids))
                if stored_bytes(pending) > SHARD:
                    flush()
        flush()
        self.bytes = sum(sum(file.values()) for file in files)
        if len(files) == 1:
            (work / "model-00001.safetensors").rename(work / "model.safetensors")
            return
        where = {key: f"model-{i:05}.safetensors" for i, file in enumerate(files, 1) for key in file}
        write_json(work / INDEX, {"metadata": {"total_size": self.bytes}, "weight_map": where})

    def _name(self, stored: str) -> str:
        """What the model calls a tensor of the checkpoint, which may lack the base model's prefix; else its name."""
        return self.names.get(stored, stored)

    def _packed(self, name: str, head_ids: Tensor | None) -> dict[str, Tensor]:
        """What is stored of the checkpoint's tensor `name`: parts of a packed matrix, or the tensor itself."""
        tensor = self.shards.tensor(name)
        if tensor.is_floating_point():
            self.dense_bytes += 2 * tensor.numel()
        linear = self.linears.get(name)
        if linear is None and name != HEAD and not name.endswith(EMBEDDING):
            return {self._name(name): tensor.clone()}
        stored = linear or self._name(name).removesuffix(".weight")
        if linear in self.claim["linears"]:
            claims.check_claim(self.claim, stored, tensor, self.folder)
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"model {self.folder} has a weight in {stored} that is not finite: mend the checkpoint.")
        if name == HEAD:
            return self._packed_head(tensor, head_ids)
        if linear is None:
            return self._stored(stored, tensor, "dense", self.types.embedding)
        parts = self._stored(
            linear, tensor, self._kind(linear, tensor), self.types.weights, self._codes(linear, tensor)
        )
        self.linear_bytes += stored_bytes(parts)
        self.linear_dense_bytes += 2 * tensor.numel()
        return parts

    def _packed_head(self, tensor: Tensor, head_ids: Tensor | None) -> dict[str, Tensor]:
        """What is stored of the head, of which `tensor` is the whole weight."""
        codes = self.calibrated.head() if self.calibrated else None
        if self.kept is not None and self.kept.kind("lm_head"):
            rows = None if head_ids is None else head_ids.long()
            return self._note("lm_head", *kept_matrix(self.kept, "lm_head", rows))
        if head_ids is not None:
            tensor = tensor[head_ids.long()]
            codes = codes and replace(codes, codes=codes.codes[head_ids.long()], scale=codes.scale[head_ids.long()])
        return self._stored(HEAD.removesuffix(".weight"), tensor, "dense", self.types.head, codes)

    def _stored(
        self, name: str, tensor: Tensor, kind: str, values: str, codes: Codes | None = None
    ) -> dict[str, Tensor]:
        """What is stored of the matrix `name`, packed as `kind`."""
        if self.kept is not None:
            return self._note(name, *kept_matrix(self.kept, name))
        entry, parts = pack_matrix(tensor, kind, values, codes, self.types.activations)
        self._note_error(tensor, entry, parts, name)
        return self._note(name, entry, parts)

    def _note(self, name: str, entry: MatrixEntry, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Note the entry of the matrix `name` for the header; its parts by their names in the file."""
        self.entries[name] = entry.to_dict()
        return {f"{name}.{part}": value.clone() for part, value in parts.items()}

    def _kind(self, linear: str, weight: Tensor) -> str:
        """The kind that a linear is packed as."""
        if linear not in self.claim["linears"]:
            return "dense"
        return kind_of(weight, str(claims.pattern_of(self.claim, linear)))

    def group_of(self, linear: str, weight: Tensor) -> int:
        """Inputs of a linear that share a scale of int4."""
        return scale_group(self._kind(linear, weight.cpu()))

    def _codes(self, linear: str, weight: Tensor) -> Codes | None:
        """The int4 codes of a linear; None where they follow from the weight, or other values are packed."""
        if self.types.weights != "int4":
            return None
        codes = self.calibrated.of(linear) if self.calibrated else None
        return codes or rounded.codes_of(self.folder, linear, weight)

    def _note_error(self, tensor: Tensor, entry: MatrixEntry, parts: dict[str, Tensor], name: str) -> None:
        """Unpack what was packed, which checks it, and note the largest rounding error."""
        weight = unpack_matrix(name, entry, parts).weight()
        largest = tensor.float().abs().amax(1).clamp(min=1e-30)
        self.error = max(self.error, float(((weight - tensor.float()).abs().amax(1) / largest).max()))
