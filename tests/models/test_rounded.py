"""Rounded checkpoints: the codes that weights and scales say together, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import pack_mask, unpack_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import Codes, int4_codes
from sparsedraft.models.config.sparsity import claim_of
from sparsedraft.models.rounded import BESIDE, codes_of, mask_of, write_beside


@pytest.fixture
def rounded(tmp_path: Path) -> tuple[Path, Codes]:
    """A folder that claims int4 for the linear `a`, and its codes."""
    codes = int4_codes(torch.randn(6, 100, generator=torch.Generator().manual_seed(0)), 64)
    write_beside(tmp_path, {"a": codes.scale}, {"a": pack_mask(codes.codes != 0)})
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": {"a": 0}}
    claim["quantization"] = {"scheme": "int4", "groups": {"a": 64}}
    (tmp_path / "sparsity.json").write_text(json.dumps(claim))
    return tmp_path, codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_codes_come_back_exactly_whatever_type_holds_the_weights(rounded, dtype: torch.dtype) -> None:
    folder, codes = rounded
    found = codes_of(folder, "a", codes.weight(dtype))
    assert found is not None and found.group == 64
    assert torch.equal(found.codes, codes.codes) and torch.equal(found.scale, codes.scale)
    assert codes_of(folder, "b", codes.weight()) is None
    assert claim_of(folder) == {"pattern": "2:4", "sparsity": 0.5, "linears": {"a": 0}}, "the claim of zeros only"


def test_without_a_claim_there_are_no_codes(rounded) -> None:
    folder, codes = rounded
    (folder / "sparsity.json").unlink()
    assert codes_of(folder, "a", codes.weight()) is None


def test_weights_that_were_changed_since_are_refused(rounded) -> None:
    folder, codes = rounded
    weight = codes.weight(torch.bfloat16)
    weight[3, 70] += 0.4 * float(codes.scale[3, 1])
    with pytest.raises(UserError, match=r"weights in a that are not those of its quantization\.safetensors"):
        codes_of(folder, "a", weight)
    weight[3, 70] = 9 * codes.scale[3, 1]  # beyond the range of the codes
    with pytest.raises(UserError, match="were changed since"):
        codes_of(folder, "a", weight)


@pytest.mark.parametrize("fault", ["missing", "cut", "renamed", "shape", "type", "zero", "nan"])
def test_damaged_scales_are_refused(rounded, fault: str) -> None:
    folder, codes = rounded
    file = folder / BESIDE
    scale = load_file(file)["a.scale"]
    if fault == "missing":
        file.unlink()
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        changed = {"shape": scale[:, :1], "type": scale.float(), "zero": scale * 0, "nan": scale * torch.nan}
        save_file({"b.scale" if fault == "renamed" else "a.scale": changed.get(fault, scale).contiguous()}, file)
    with pytest.raises(UserError, match=f"{BESIDE}.*prune again"):
        codes_of(folder, "a", codes.weight())


@pytest.mark.parametrize("columns", [100, 64, 8, 7])
def test_the_mask_comes_back_with_weights_whose_code_is_0(tmp_path: Path, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(6, columns, generator=generator)
    mask = torch.rand(6, columns, generator=generator) > 0.4
    codes = int4_codes(weight * mask, 32)
    assert bool((mask & (codes.codes == 0)).any()), "else the zeros would tell"
    write_beside(tmp_path, {"a": codes.scale}, {"a": pack_mask(mask)})
    claim = {"pattern": "unstructured", "linears": {"a": 0}, "quantization": {"scheme": "int4", "groups": {"a": 32}}}
    (tmp_path / "sparsity.json").write_text(json.dumps(claim))
    assert torch.equal(mask_of(tmp_path, "a", codes.weight(torch.bfloat16), Pattern()), mask)
    assert mask_of(tmp_path, "b", codes.weight(), Pattern()) is None
    (tmp_path / "sparsity.json").unlink()
    assert mask_of(tmp_path, "a", codes.weight(), Pattern()) is None


@pytest.mark.parametrize("fault", ["missing", "shape", "type", "prunes a weight", "pattern"])
def test_damaged_masks_are_refused(rounded, fault: str) -> None:
    folder, codes = rounded
    beside, weight = load_file(folder / BESIDE), codes.weight()
    mask = unpack_mask(beside["a.mask"], 100)
    kept = (mask & (weight != 0)).nonzero()[0].tolist()
    mask[kept[0], kept[1]] = False
    changed = {"shape": beside["a.mask"][:, :3], "type": beside["a.mask"].float(), "prunes a weight": pack_mask(mask)}
    parts = {} if fault == "missing" else {"a.mask": changed.get(fault, beside["a.mask"]).contiguous()}
    save_file({"a.scale": beside["a.scale"], **parts}, folder / BESIDE)
    with pytest.raises(UserError, match=f"{BESIDE}.*: prune again"):
        mask_of(folder, "a", weight, Pattern(2, 4) if fault == "pattern" else Pattern())


@pytest.mark.parametrize("claim", [{"scheme": "int3", "groups": {}}, {"scheme": "int4", "groups": {"a": "64"}}, 4])
def test_a_claim_of_another_form_is_refused(rounded, claim: object) -> None:
    folder, codes = rounded
    whole = json.loads((folder / "sparsity.json").read_text())
    (folder / "sparsity.json").write_text(json.dumps({**whole, "quantization": claim}))
    with pytest.raises(UserError, match="quantization"):
        codes_of(folder, "a", codes.weight())
