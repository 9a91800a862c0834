"""A rounded checkpoint holds weights of int4: code · scale, with the scales and the mask beside them.

bfloat16 does not hold code · scale exactly, but round(weight / scale) is the code. So `pack` finds exactly the codes
that `prune --quantize int4` chose. A weight that stays may have the code 0: the mask tells it from one that was pruned,
and fine-tuning trains it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import obeys, unpack_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import GROUPS, Codes, nearest_codes
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.weight_files import BYTES

# {linear}.scale: float16 [out, ⌈in / group⌉]; {linear}.mask: uint8 [out, ⌈in / 8⌉], a bit for each weight that stays
BESIDE = "quantization.safetensors"
PRECISION = 2.0**-8  # of bfloat16: half a unit in the last place


def write_beside(folder: Path, scales: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Write the `scales` of the linears, by name, and their keep-`masks` as bytes beside a checkpoint's weights."""
    tensors = {f"{linear}.scale": scale.contiguous() for linear, scale in scales.items()}
    save_file(tensors | {f"{linear}.mask": mask.contiguous() for linear, mask in masks.items()}, folder / BESIDE)


def codes_of(folder: Path, linear: str, weight: Tensor) -> Codes | None:
    """The int4 codes of a linear of the checkpoint `folder`, whose `weight` [out, in] is as stored; None where it
    claims none.

    UserError where the scales are missing or damaged, or the weight is not code · scale.
    """
    group = groups_of(folder).get(linear)
    if group is None:
        return None
    scale = _scale(folder, linear, group, weight)
    exact = weight.float()
    each = scale.float().repeat_interleave(group, dim=1)[:, : weight.shape[1]]
    codes = Codes(nearest_codes(exact, each).to(torch.int8), scale, group)
    rounded = codes.weight()
    if not bool(((exact - rounded).abs() <= PRECISION * rounded.abs()).all()):
        raise UserError(
            f"checkpoint {folder} has weights in {linear} that are not those of its {BESIDE}: they were changed since; "
            f"delete that file and 'quantization' in sparsity.json, or prune again."
        )
    return codes


def mask_of(folder: Path, linear: str, weight: Tensor, pattern: Pattern) -> Tensor | None:
    """The keep-mask bool [out, in] of a rounded linear of the checkpoint `folder`; None where it claims none.

    UserError where the mask is missing or damaged, prunes a weight that is not 0, or does not obey the pattern.
    """
    if linear not in groups_of(folder):
        return None
    packed, shape = _beside(folder, linear, "mask"), (weight.shape[0], -(-weight.shape[1] // 8))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
        raise UserError(
            f"checkpoint {folder} has a mask {packed.dtype} {list(packed.shape)} of {linear} in {BESIDE}, and its "
            f"weight needs uint8 {list(shape)}: prune again."
        )
    mask = unpack_mask(packed, weight.shape[1])
    if bool((weight.cpu()[~mask] != 0).any()) or not obeys(mask, pattern):
        raise UserError(
            f"checkpoint {folder} has a mask of {linear} in {BESIDE} that its weights do not have: prune again."
        )
    return mask


def bytes_beside(folder: Path) -> dict[str, int]:
    """Bytes that lie beside the weights of each rounded linear; empty where none is rounded, or the file is damaged."""
    sizes: Counter[str] = Counter()
    try:
        with safe_open(folder / BESIDE, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                sizes[name.rpartition(".")[0]] += math.prod(part.get_shape()) * BYTES[part.get_dtype()]
    except (SafetensorError, OSError, KeyError):  # KeyError: of a type that we do not write
        return {}
    return dict(sizes)


def _scale(folder: Path, linear: str, group: int, weight: Tensor) -> Tensor:
    """The scales of a linear, checked: float16, of the weight's shape, finite and not 0."""
    scale = _beside(folder, linear, "scale")
    shape = (weight.shape[0], -(-weight.shape[1] // group))
    if group not in GROUPS or scale.dtype != torch.float16 or tuple(scale.shape) != shape:
        raise UserError(
            f"checkpoint {folder} has scales {scale.dtype} {list(scale.shape)} of {linear} in {BESIDE}, and its weight "
            f"needs float16 {list(shape)} (groups of {group}): prune again."
        )
    if not bool((torch.isfinite(scale) & (scale != 0)).all()):
        raise UserError(
            f"checkpoint {folder} has a scale of {linear} in {BESIDE} that is 0 or not finite: prune again."
        )
    return scale


def _beside(folder: Path, linear: str, part: str) -> Tensor:
    """The tensor `part` (scale, mask) that lies beside the weights of a linear; UserError where it cannot be read."""
    try:
        with safe_open(folder / BESIDE, "pt") as file:
            return file.get_tensor(f"{linear}.{part}")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint {folder} claims int4 weights, but the {part} of {linear} in {BESIDE} cannot be read "
            f"({error}): prune again."
        ) from None
