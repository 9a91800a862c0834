"""A checkpoint in the format of compressed-tensors, which vLLM and transformers load without us.

Only the linears of decoder layers are rounded: int8 with a scale for each row, multiplied with inputs of 8 bits, or
int4 with one for each 32 inputs. They are stored dense; a zero stays the code 0. All else stays as it is.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object, write_json
from sparsedraft.maths.quantization import GROUP, Codes, int4_codes, int8_codes
from sparsedraft.models import checkpoint, claims, rounded, shards
from sparsedraft.models.gguf.blocks import BlockFile
from sparsedraft.models.skeleton import skeleton
from sparsedraft.stages.pack.calibrated import CalibratedCodes
from sparsedraft.stages.pack.writer import PackedWriter, Types

FORMAT = "compressed-tensors"
NAMES = {"int8": "int-quantized", "int4": "pack-quantized"}
IN_A_WORD = 8  # codes of int4 in an int32


class CompressedWriter(PackedWriter):
    """Writes the checkpoint in `folder` so. Raises what PackedWriter raises, and UserError for int4 of linears whose
    inputs are no multiple of 32, which no reader of the format takes."""

    def __init__(self, folder: Path, types: Types, on_text: bool = False, kept: BlockFile | None = None) -> None:
        super().__init__(folder, types, on_text, kept)
        for tensor, linear in self.linears.items() if types.weights == "int4" else ():
            if (columns := self.shards.shapes[str(tensor)][1]) % GROUP:
                raise UserError(
                    f"model {folder} has {linear} of {columns} inputs, and int4 in compressed-tensors needs a multiple "
                    f"of {GROUP}: give --weights int8, or the format sparsedraft."
                )

    def write(
        self,
        work: Path,
        head_ids: Tensor | None = None,
        calibrated: CalibratedCodes | None = None,
        *,
        follows: bool = False,
    ) -> dict[str, Any]:
        """Write the folder `work`; its bytes and rounding error. Heads stay whole."""
        self.calibrated = calibrated
        self._write_tensors(work, None, {})
        shards.copy_side_files(self.folder, work)
        checkpoint.write_config(self.folder, work)
        config = read_object(work / "config.json")
        config["quantization_config"] = description(self.types.weights, self._whole())
        write_json(work / "config.json", config)
        return {
            "format": FORMAT, "weights": self.types.weights, "bytes": self.bytes, "rounding_error": self.error,
            "dense_f16_bytes": self.dense_bytes,
        }  # fmt: skip

    def group_of(self, linear: str, weight: Tensor) -> int:
        return GROUP

    def _whole(self) -> list[str]:
        """The linears that are stored as they are: the head, and those that a model has outside of its layers."""
        model, done = skeleton(checkpoint.read_config(self.folder)), {*self.linears.values()}
        linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        return [name for name in linears if name not in done]

    def _packed(self, name: str, head_ids: Tensor | None) -> dict[str, Tensor]:
        tensor, linear = self.shards.tensor(name), self.linears.get(name)
        if tensor.is_floating_point():
            self.dense_bytes += 2 * tensor.numel()
        if linear is None:
            return {self._name(name): tensor.clone()}
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"model {self.folder} has a weight in {linear} that is not finite: mend the checkpoint.")
        if linear in self.claim["linears"]:
            claims.check_claim(self.claim, linear, tensor, self.folder)
        codes, parts = self._parts(linear, tensor)
        self._note_share(tensor, codes)
        return {f"{linear}.{part}": value for part, value in parts.items()}

    def _parts(self, linear: str, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the stored weight is [rows, columns], the tensors that are stored of a linear)."""
        if self.types.weights == "int8":
            values, scale = int8_codes(weight)
            return values * scale[:, None], {"weight": values, "weight_scale": scale[:, None].contiguous()}
        found = self.calibrated.of(linear) if self.calibrated else rounded.codes_of(self.folder, linear, weight)
        codes = found or int4_codes(weight)
        return codes.weight(), {
            "weight_packed": words(codes.codes),
            "weight_scale": scales(codes),
            "weight_shape": torch.tensor(codes.codes.shape),
        }

    def _note_share(self, tensor: Tensor, stored: Tensor) -> None:
        """Note the largest rounding error, a share of the row's largest value."""
        largest = tensor.float().abs().amax(1).clamp(min=1e-30)
        self.error = max(self.error, float(((stored - tensor.float()).abs().amax(1) / largest).max()))


def words(codes: Tensor) -> Tensor:
    """Codes int8 [rows, columns] from -8 to 7 as int32 [rows, ⌈columns / 8⌉]: plus 8 each, the first lowest."""
    padded = torch.nn.functional.pad(codes.to(torch.int64) + 8, (0, -codes.shape[1] % IN_A_WORD))
    parts = padded.unflatten(1, (-1, IN_A_WORD)) << (4 * torch.arange(IN_A_WORD))
    whole = parts.sum(-1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


def scales(codes: Codes) -> Tensor:
    """The scale of each 32 inputs, float16 [rows, ⌈columns / 32⌉], where larger groups shared one, too."""
    count = -(-codes.codes.shape[1] // GROUP)
    return codes.scale.repeat_interleave(codes.group // GROUP, dim=1)[:, :count].contiguous()


def description(weights: str, whole: list[str]) -> dict[str, Any]:
    """`quantization_config` of config.json; the linears `whole` are not rounded."""
    common = {"type": "int", "symmetric": True}
    group: dict[str, Any] = {"targets": ["Linear"]}
    if weights == "int8":
        group["weights"] = common | {"num_bits": 8, "strategy": "channel", "dynamic": False}
        group["input_activations"] = common | {"num_bits": 8, "strategy": "token", "dynamic": True}
    else:
        group["weights"] = common | {"num_bits": 4, "strategy": "group", "group_size": GROUP, "dynamic": False}
    return {
        "quant_method": FORMAT, "format": NAMES[weights], "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": whole,
    }  # fmt: skip
