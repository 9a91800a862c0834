"""The stage `pack`: a checkpoint in, the same model with its zeros left out and its values rounded, if asked, out."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from sparsedraft.base import artifact
from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object, write_json
from sparsedraft.models import checkpoint, claims, quantizers, shards
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.reload import check_loads
from sparsedraft.models.shards import SHARD, Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.packed_folder import FORMAT, HEAD_IDS, HEADER, VERSION, is_packed
from sparsedraft.native.packed_format import MatrixEntry, kind_of, pack_matrix, stored_bytes, unpack_matrix
from sparsedraft.native.quantizer import register
from sparsedraft.text import dataset

WEIGHTS = ("f16", "bf16", "int8")


def pack(
    model: str,
    out: Path,
    *,
    weights: str = "int8",
    head_tokens: int | None = None,
    head_data: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pack the checkpoint `model` into the folder `out`.

    `weights`: the type of the values: f16, bf16, or int8 with a scale for each row; biases and norms stay as they are.
    `head_tokens` trims the head to the tokens most frequent in the distilled data `head_data` (and those that end a
    text); the answers' tokens that it lost are counted.
    Raises UserError for a checkpoint that lies about its mask, values that do not fit, a head that cannot be trimmed.
    """
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights} is not known: choose one of {', '.join(WEIGHTS)}.")
    if (head_tokens is None) != (head_data is None):
        raise UserError("--head-tokens and --head-data belong together: the data says which tokens are frequent.")
    folder = checkpoint.find(model)
    shards.side_files(folder)  # refused now, not at the end
    check_packable(model, folder)

    def build(work: Path) -> dict[str, Any]:
        result = _Packing(folder, work, weights).run(head_tokens, head_data)
        register()  # what was written is loaded as transformers loads a packed folder
        check_loads(work)
        return result

    inputs = {
        "model": folder, "weights": weights, "head_tokens": head_tokens,
        "head_data": Path(head_data) if head_data else None,
    }  # fmt: skip
    return artifact.make(out, "pack", inputs, build, overwrite=overwrite, reads=(model, head_data))


def check_packable(model: str, folder: Path) -> None:
    """Raise UserError for a checkpoint whose matrices are no plain linears: packed, quantised, or fused experts."""
    if is_packed(folder):
        raise UserError(f"model {model} is packed already: pack the checkpoint it came from.")
    config = checkpoint.read_config(folder)
    quantizers.check_plain(model, config, Shards(folder), "pack")
    decoder_linears(skeleton(config))


def frequent(folder: Path, data: str, count: int, vocabulary: int) -> tuple[Tensor, float]:
    """(`count` tokens of the vocabulary, ascending, and the share of the data's answer tokens that they miss).

    The ends of a text first, then the most frequent in the answers of `data`, then the lowest numbers, which in
    byte-level BPE are the most frequent of its own corpus. UserError where data or count do not allow it.
    """
    if not 0 < count < vocabulary:
        raise UserError(f"--head-tokens {count} is not a part of the head's {vocabulary}: give a number below it.")
    if not any(Path(data).glob("data-*.parquet")):
        raise UserError(f"--head-data {data} is no distilled data folder: make one with 'sparsedraft distill'.")
    tokenizer = checkpoint.load_tokenizer(folder)
    if not dataset.same_tokenizer(Path(data), tokenizer):
        raise UserError(
            f"--head-data {data} is of another tokenizer than {folder}: distill data of a model that has it."
        )
    counts = np.zeros(vocabulary, dtype=np.int64)
    for batch in dataset.batches(Path(data), ["id", "answer_ids"]):
        ids = batch["answer_ids"].flatten().to_numpy()
        if len(beyond := np.flatnonzero(ids >= vocabulary)):
            row = pc.list_parent_indices(batch["answer_ids"])[int(beyond[0])].as_py()
            raise UserError(
                f"--head-data {data}, row '{batch['id'][row]}': answer_ids has the token {ids[beyond[0]]}, which the "
                f"head's {vocabulary} lack: it is of another tokenizer."
            )
        counts += np.bincount(ids, minlength=vocabulary)
    first = {i for i in end_ids(folder, tokenizer) if i < vocabulary}
    if count < len(first):
        raise UserError(f"--head-tokens {count} cannot hold the {len(first)} tokens that end a text: give more.")
    order = sorted(range(vocabulary), key=lambda i: (i not in first, -int(counts[i]), i))[:count]
    missed = 1 - counts[order].sum() / max(1, counts.sum())
    return torch.tensor(sorted(order), dtype=torch.int32), float(missed)


class _Packing:
    def __init__(self, folder: Path, work: Path, weights: str) -> None:
        self.folder, self.work, self.weights = folder, work, weights
        self.shards = Shards(folder)
        self.claim = claims.claim_of(folder) or {"linears": {}}
        model = skeleton(checkpoint.read_config(folder))
        self.prefix = model.base_model_prefix
        self.linears = {self.shards.find(f"{name}.weight", self.prefix): name for name in decoder_linears(model)}
        self.config = checkpoint.read_config(folder).get_text_config()
        lost = [name for stored, name in self.linears.items() if stored is None]
        if lost:
            raise UserError(f"model {folder} lacks {lost[0]}: give a whole checkpoint.")
        self.entries: dict[str, Any] = {}
        self.error = 0.0  # largest rounding error, against the row's largest value
        self.bytes = self.dense_bytes = self.linear_bytes = self.linear_dense_bytes = 0

    def run(self, head_tokens: int | None, head_data: str | None) -> dict[str, Any]:
        ids, missed = None, 0.0
        embedding = next((n for n in self.shards.files if n.endswith("embed_tokens.weight")), None)
        if head_tokens is not None and head_data is not None:
            if embedding is None:
                raise UserError(
                    f"model {self.folder} has no embed_tokens, so its head cannot be trimmed: leave out --head-tokens."
                )
            ids, missed = frequent(self.folder, head_data, head_tokens, self.shards.shapes[embedding][0])
        self._write(ids)
        header = {"format": FORMAT, "version": VERSION, "weights": self.weights, "linears": self.entries}
        write_json(self.work / HEADER, header)
        shards.copy_side_files(self.folder, self.work)
        checkpoint.write_config(self.folder, self.work)
        config = read_object(self.work / "config.json")
        config["quantization_config"] = {"quant_method": "sparsedraft", "weights": self.weights}
        write_json(self.work / "config.json", config)
        kinds_of = Counter(entry["kind"] for name, entry in self.entries.items() if name in self.linears.values())
        return {
            "weights": self.weights,
            "kinds": dict(kinds_of),
            "bytes": self.bytes,
            "dense_f16_bytes": self.dense_bytes,
            "linear_bytes": self.linear_bytes,
            "linear_dense_f16_bytes": self.linear_dense_bytes,
            "rounding_error": self.error,
            **({"head_tokens": len(ids), "head_missed": missed} if ids is not None else {}),
        }

    def _write(self, ids: Tensor | None) -> None:
        """Every tensor, packed where it is a matrix, in files of bounded size."""
        held: dict[str, Tensor] = {} if ids is None else {HEAD_IDS: ids}
        files: list[dict[str, int]] = []
        tied = bool(self.config.tie_word_embeddings)

        def flush() -> None:
            if held:
                name = f"model-{len(files) + 1:05}.safetensors"
                shards.save_file(held, self.work / name, metadata={"format": "pt"})
                files.append({key: t.numel() * t.element_size() for key, t in held.items()})
                held.clear()

        with track("packing", len(self.shards.files), "tensors") as tracker:
            for name in sorted(self.shards.files):
                tracker.advance(1)
                if name == "lm_head.weight" and tied:
                    continue
                held.update(self._packed(name, ids))
                if sum(t.numel() * t.element_size() for t in held.values()) > SHARD:
                    flush()
        flush()
        self.bytes = sum(sum(file.values()) for file in files)
        if len(files) == 1:
            (self.work / "model-00001.safetensors").rename(self.work / "model.safetensors")
            return
        where = {key: f"model-{i:05}.safetensors" for i, file in enumerate(files, 1) for key in file}
        write_json(self.work / shards.INDEX, {"metadata": {"total_size": self.bytes}, "weight_map": where})

    def _packed(self, name: str, ids: Tensor | None) -> dict[str, Tensor]:
        tensor = self.shards.tensor(name)
        if tensor.is_floating_point():
            self.dense_bytes += 2 * tensor.numel()
        linear = self.linears.get(name)
        head = name == "lm_head.weight"
        if linear is None and not head and not name.endswith("embed_tokens.weight"):
            return {name: tensor.clone()}
        stored = linear or name.removesuffix(".weight")
        claimed = linear is not None and linear in self.claim["linears"]
        if linear is not None and claimed:
            claims.check_claim(self.claim, linear, tensor, self.folder)
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"model {self.folder} has a weight in {stored} that is not finite: mend the checkpoint.")
        if head and ids is not None:
            tensor = tensor[ids.long()]
        kind = "dense"
        if linear is not None and claimed:
            kind = kind_of(tensor, str(claims.pattern_of(self.claim, linear)))
        entry, parts = pack_matrix(tensor, kind, self.weights)
        self._note_error(tensor, entry, parts, stored)
        self.entries[stored] = entry.to_dict()
        if linear is not None:
            self.linear_bytes += stored_bytes(parts)
            self.linear_dense_bytes += 2 * tensor.numel()
        return {f"{stored}.{part}": value.clone() for part, value in parts.items()}

    def _note_error(self, tensor: Tensor, entry: MatrixEntry, parts: dict[str, Tensor], name: str) -> None:
        values, scale = unpack_matrix(name, entry, parts)  # which proves the file, too
        back = values.float() if scale is None else values * scale[:, None]
        largest = tensor.float().abs().amax(1).clamp(min=1e-30)
        self.error = max(self.error, float(((back - tensor.float()).abs().amax(1) / largest).max()))
