"""The packed format: round trips bit for bit, and no file, however broken, gets past the checks."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import keep_mask
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import int4_codes
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.native import extension, layout, layout_choice, packed_format
from sparsedraft.native.blocks import BLOCKS
from sparsedraft.native.nibbles import nonzero_nibbles, pack_nibbles, unpack_nibbles
from sparsedraft.native.packed_folder import HEADER, PackedReader
from sparsedraft.native.packed_format import MatrixEntry, kind_of, pack_matrix, unpack_matrix
from sparsedraft.native.stored_matrix import VALUE_TYPES
from stages import pack, prune

KINDS = ("dense", "bitmask", "2:4", "4:8", "3:8", "1:8", "8:16", "7:32", "1:256")


def weight_of(kind: str, seed: int = 0) -> torch.Tensor:
    """bfloat16 [13, 512] of this kind, one row of zeros, one group that is not full."""
    weight = torch.randn(13, 512, generator=torch.Generator().manual_seed(seed)).bfloat16()
    if kind != "dense":
        pattern = Pattern.parse(kind) if ":" in kind else Pattern()
        weight *= keep_mask(pattern, weight.abs().float(), pattern.resolve(None))
    weight[3] = 0
    weight[4, :256] *= torch.arange(256) % 3 == 0
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [values for values in VALUE_TYPES if values not in BLOCKS])
def test_round_trip(kind: str, values: str) -> None:
    weight = weight_of(kind)
    entry, tensors = pack_matrix(weight, kind, values)
    back = unpack_matrix("w", MatrixEntry.parse("w", json.loads(json.dumps(entry.to_dict()))), tensors)
    assert back.type == values
    assert bool(((back.values != 0) <= (weight != 0)).all()), "what was pruned stays zero"
    if back.scale is None:
        assert torch.equal(back.values.double(), weight.double())
    elif values == "int8":
        scale = back.scale[:, None]
        assert bool(((back.values * scale - weight.float()).abs() <= scale / 2 * (1 + 1e-5)).all())
    else:
        assert torch.equal(back.weight(), int4_codes(weight, back.group).weight())


@pytest.mark.parametrize("kind", (*KINDS, "2:8"))
@pytest.mark.parametrize("values", [values for values in VALUE_TYPES if values not in BLOCKS])
def test_the_bytes_a_weight_are_known_beforehand(kind: str, values: str) -> None:
    """Of rows that fill whole groups and bytes; int8 has 4 more a row, and an odd code of a mask half of one."""
    weight = torch.randn(8, 4096, generator=torch.Generator().manual_seed(1))
    if kind != "dense":
        pattern = Pattern.parse(kind) if ":" in kind else Pattern()
        weight *= keep_mask(pattern, weight.abs(), pattern.resolve(None))
    entry, tensors = pack_matrix(weight, kind, values)
    density = entry_density = float((weight != 0).float().mean())
    if values == "int4" and kind == "bitmask":  # codes of 0 are not stored
        entry_density = float((unpack_matrix("w", entry, tensors).values != 0).float().mean())
        assert entry_density <= density
    expected = packed_format.expected_bytes(kind, values, entry_density) * weight.numel()
    assert packed_format.stored_bytes(tensors) - (32 if values == "int8" else 0) == pytest.approx(expected, abs=0.5)


def test_codes_that_are_known_are_kept() -> None:
    """Whoever rounded them, such as pruning, and with whatever scales; a kept weight may have the code 0."""
    for kind in ("dense", "bitmask", "2:4", "4:8", "2:8"):
        weight = weight_of(kind) if kind != "2:8" else weight_of("1:8")
        codes = int4_codes(weight, 128)
        codes.codes[weight.float().abs() < 0.3] = 0
        entry, tensors = pack_matrix(weight, kind, "int4", codes)
        back = unpack_matrix("w", entry, tensors)
        assert torch.equal(back.values, codes.codes) and back.scale is not None and torch.equal(back.scale, codes.scale)


def test_nibbles() -> None:
    for count in (1, 2, 7, 16):
        codes = torch.arange(-8, 8, dtype=torch.int8)[:count].expand(3, -1)
        assert torch.equal(unpack_nibbles(pack_nibbles(codes), count), codes)
        assert pack_nibbles(codes).shape == (3, (count + 1) // 2)
        for seen in (pack_nibbles(codes), pack_nibbles(codes) | (0xF0 if count % 2 else 0)):  # what fills up: no code
            if count % 2:
                seen[:, :-1] = pack_nibbles(codes)[:, :-1]
            assert nonzero_nibbles(seen, count) == int(torch.count_nonzero(codes))
    assert pack_nibbles(torch.tensor([-8, 7], dtype=torch.int8)).tolist() == [0x78]


@pytest.mark.parametrize("columns", [64, 96, 101, 7])
def test_dense_int4_is_laid_out_from_the_bytes_of_its_file(columns: int) -> None:
    """The same tiles, to the bit, as from its codes in bytes of their own."""
    weight = torch.randn(37, columns, generator=torch.Generator().manual_seed(columns))
    weight[5] = 0
    entry, tensors = pack_matrix(weight, "dense", "int4")
    stored = unpack_matrix("w", entry, tensors)
    expected, label = layout.lay_out(stored, "dense")
    matrix, found, nonzero = layout.lay_out_nibbles("w", entry, tensors)
    assert found == label and nonzero == int(torch.count_nonzero(stored.values))
    parts, others = (extension.extension().parts_of(each) for each in (matrix, expected))
    assert all(np.array_equal(parts[name], others[name]) for name in others)
    with pytest.raises(UserError, match=r"packed matrix w has (values|scale)"):
        layout.lay_out_nibbles("w", replace(entry, columns=columns + 2), tensors)


@pytest.mark.parametrize(
    ("kind", "bits"), [("dense", 16), ("bitmask", 9), ("2:4", 9), ("4:8", 10), ("2:8", 5), ("8:16", 10)]
)
def test_bits_of_each_weight(kind: str, bits: float) -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)).half()
    if kind != "dense":
        pattern = Pattern.parse(kind) if ":" in kind else Pattern()
        weight *= keep_mask(pattern, weight.abs().float(), pattern.resolve(None))
    assert packed_format.stored_bytes(pack_matrix(weight, kind, "f16")[1]) * 8 == bits * weight.numel()


@pytest.mark.parametrize(
    ("kind", "most"), [("dense", 0.5625), ("bitmask", 0.44), ("2:4", 0.44), ("4:8", 0.47), ("2:8", 0.29)]
)
def test_bytes_of_each_weight_in_int4(kind: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file, and laid out for kernels of AVX-512: others read a mask faster as a dense matrix."""
    monkeypatch.setattr(layout_choice, "fastest", lambda: "avx512")
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    if kind != "dense":
        pattern = Pattern.parse(kind) if ":" in kind else Pattern()
        weight *= keep_mask(pattern, weight.abs(), pattern.resolve(None))
    entry, tensors = pack_matrix(weight, kind, "int4")
    assert packed_format.stored_bytes(tensors) <= most * weight.numel()
    if extension.is_built():
        matrix, _ = layout.lay_out(unpack_matrix("w", entry, tensors), kind)
        assert matrix.bytes - 64 <= most * weight.numel()


def test_places_that_span_no_byte() -> None:
    for bits in (2, 4, 8):
        numbers = torch.randint(0, 1 << bits, (3, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
        assert torch.equal(packed_format.unpack_places(packed_format.pack_places(numbers, bits), bits, 13), numbers)


def test_kinds_are_chosen_by_what_the_weight_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("dense", "bitmask", "2:4", "4:8", "3:8", "1:8"):
        assert kind_of(weight_of(kind)[:3]) == kind
    assert kind_of(weight_of("8:16")[:3], "8:16") == "8:16" and kind_of(weight_of("8:16")[:3]) == "bitmask"
    quarter = keep_mask(Pattern(), torch.randn(64, 512).abs(), 0.75) * torch.randn(64, 512)
    assert kind_of(quarter) == "bitmask"
    for cpu, name in (("portable", "window"), ("avx2", "window"), ("avx512", "bitmask"), ("amx", "bitmask")):
        monkeypatch.setattr(layout_choice, "fastest", lambda cpu=cpu: cpu)
        assert layout_choice.layout_of("bitmask", 0.25, 512) == (name, 0)
        assert layout_choice.layout_of("bitmask", 0.1, 512) == ("window", 0)
    assert layout_choice.layout_of("8:16", 0.5, 512) == ("bitmask", 0)


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="does not fit f16: give --weights bf16"):
        pack_matrix(torch.full((2, 8), 1e5), "dense", "f16")
    with pytest.raises(UserError, match="the weight is not 2:4"):
        pack_matrix(torch.ones(2, 8), "2:4", "f16")


# ---- folders


@pytest.fixture(scope="module")
def pruned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pruned")
    patterns = {"2:4": {"pattern": "2:4"}, "3:8": {"pattern": "3:8"}, "half": {"pattern": "unstructured"}}
    for name, options in patterns.items():
        prune(
            str(tiny_checkpoint),
            root / name.replace(":", "of"),
            "demo:train",
            method="magnitude",
            tokens=512,
            sequence_length=64,
            **options,
        )
    return {"dense": tiny_checkpoint, **{name: root / name.replace(":", "of") for name in patterns}}


@pytest.mark.parametrize(("name", "kind"), [("dense", "dense"), ("2:4", "2:4"), ("3:8", "3:8"), ("half", "bitmask")])
@pytest.mark.parametrize("weights", ["f16", "bf16", "int8", "int4"])
def test_a_checkpoint_packed(pruned: dict[str, Path], name: str, kind: str, weights: str, tmp_path: Path) -> None:
    result = pack(str(pruned[name]), tmp_path / "packed", weights=weights)
    model = checkpoint.load(pruned[name])
    assert result["kinds"] == {kind: len(decoder_linears(model))}
    assert result["bytes"] == sum(
        t.numel() * t.element_size() for t in load_file(tmp_path / "packed/model.safetensors").values()
    )
    stored = PackedReader(tmp_path / "packed")
    for linear, module in decoder_linears(model).items():
        matrix, _ = stored.matrix(f"{linear}.weight")
        weight, scale = module.weight.detach(), matrix.scale
        if weights == "int8":
            assert scale is not None and bool(
                ((matrix.values * scale[:, None] - weight).abs() <= scale[:, None] * 0.500001).all()
            )
        elif weights == "int4":
            assert torch.equal(matrix.weight(), int4_codes(weight, matrix.group).weight())
        else:
            assert torch.equal(matrix.values, weight.to(matrix.values.dtype))
        assert count_zeros(matrix.values) >= count_zeros(weight)
    assert stored.vector("model.norm.weight").equal(model.model.norm.weight)
    assert pack(str(pruned[name]), tmp_path / "packed", weights=weights) == result, (
        "a finished folder is not made again"
    )


def test_a_liar_is_not_packed(pruned: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pruned["2:4"], tmp_path / "liar")
    tensors = load_file(tmp_path / "liar/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0] = 1
    save_file(tensors, tmp_path / "liar/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lies: model\.layers\.1\.mlp\.up_proj is not 2:4"):
        pack(str(tmp_path / "liar"), tmp_path / "packed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int3"}, "--weights int3 is not known"),
        ({"head_tokens": 10}, "--head-tokens and --head-data belong together"),
        ({"head_tokens": 10, "head_data": "demo:train"}, "demo:train is no distilled data folder"),
    ],
)
def test_options_that_make_no_sense(tiny_checkpoint: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(str(tiny_checkpoint), tmp_path / "packed", **options)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a sparsedraft-packed one"),
        ({"version": 5}, "is of version 5, and this reads 1 to 4"),
        ({"version": True}, "is of version True, and this reads 1 to 4"),
        ({"group": 32}, "has group 32, which int8 does not have"),
        ({"kind": "dense", "activations": 8.0}, r"has activations 8\.0, and only int8 may have them, of 8 bits"),
        ({"activations": 16}, "has activations 16, and only int8 may have them, of 8 bits"),
        ({"values": "f16", "activations": 8}, "has activations 8, and only int8 may have them, of 8 bits"),
        ({"values": "int4"}, "has group None, not one of 32, 64, 128, 256"),
        ({"linears": []}, "is not a sparsedraft-packed one"),
        ({"kind": "4:2"}, "has kind '4:2', not dense, bitmask or N:M"),
        ({"kind": 7}, "has kind 7"),
        ({"values": "f8"}, "has values 'f8', not one of"),
        ({"values": []}, r"has values \[\], not one of"),
        ({"rows": -1}, "has rows -1, not a number from 1"),
        ({"rows": True}, "has rows True, not a number from 1"),
        ({"columns": 1 << 40}, "has columns 1099511627776, not a number"),
        ({"columns": 63}, "has columns 63, which 2:4 does not divide"),
        ({"rows": 65}, "the file is damaged"),
        ({"more": 1}, "has the entry"),
    ],
)
def test_headers_that_are_wrong(pruned: dict[str, Path], tmp_path: Path, change: dict, message: str) -> None:
    pack(str(pruned["2:4"]), tmp_path / "packed")
    header = json.loads((tmp_path / "packed" / HEADER).read_text())
    name = "model.layers.0.self_attn.q_proj"
    place = header if set(change) & {"format", "version", "linears"} else header["linears"][name]
    place.update(change)
    (tmp_path / "packed" / HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match=message):
        PackedReader(tmp_path / "packed").matrix(f"{name}.weight")


def broken(
    entry: MatrixEntry, tensors: dict[str, torch.Tensor], chance: random.Random
) -> tuple[MatrixEntry, dict[str, torch.Tensor]]:
    """One thing or another changed."""
    tensors = {key: value.clone() for key, value in tensors.items()}
    what = chance.randrange(7)
    key = chance.choice(sorted(tensors))
    if what == 0:
        del tensors[key]
    elif what == 1:
        tensors[key] = tensors[key].flatten()[: chance.randrange(tensors[key].numel())]
    elif what == 2:
        tensors[key] = tensors[key].to(chance.choice([torch.float32, torch.int64, torch.uint8, torch.int8]))
    elif what == 3:  # bytes
        raw = tensors[key].view(torch.uint8).flatten()
        for _ in range(chance.randrange(1, 9)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
    elif what == 4:
        entry = replace(entry, rows=chance.randrange(1, 40), columns=chance.randrange(1, 80) * 8)
    elif what == 5:
        entry = replace(entry, kind=chance.choice(["dense", "bitmask", "2:4", "4:8", "1:8"]))
    else:
        tensors[chance.choice(["values", "index", "scale", "more"])] = torch.zeros(
            chance.randrange(99), dtype=torch.uint8
        )
    return entry, tensors


def test_fuzz() -> None:
    """A matrix that was tampered with is refused with one sentence, or is a matrix of the shape that it says."""
    chance, refused = random.Random(0), 0
    whole = {
        (k, v): pack_matrix(weight_of(k, 1)[:, :128], k, v)
        for k in ("dense", "bitmask", "2:4", "3:8")
        for v in VALUE_TYPES
        if v not in BLOCKS
    }
    for _ in range(3000):
        entry, tensors = broken(*whole[chance.choice(sorted(whole))], chance)
        try:
            back = unpack_matrix("w", entry, tensors)
        except UserError as error:
            assert "packed matrix w" in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert tuple(back.values.shape) == (entry.rows, entry.columns) and back.type == entry.values
        assert bool(torch.isfinite(back.weight()).all())
    assert refused > 1500
