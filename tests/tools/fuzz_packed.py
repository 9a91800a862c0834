"""Damaged packed folders: each is refused with one clear sentence, or loads and answers; nothing crashes.

    PYTHONPATH=tests/support python tests/tools/fuzz_packed.py [--cases 100000] [--seed 0]

A case takes a tiny packed folder, changes bytes, fields or lengths of its files, and runs the native engine and the
packed module's unpacking on what is left. `make sanitize` does so with AddressSanitizer watching.
"""

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gguf_blocks import quantised
from packed_folders import SMALL, build, save
from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.native.session import Engine
from sparsedraft.native.weight_reader import reader_of
from stages import pack

FILES = (
    "model.safetensors",
    "model.safetensors",
    "packed.json",
    "config.json",
)  # what is read; the first twice as often
ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 7, 63, 65, 2**31 - 1, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e300, "", "dense",
    "bitmask", "1:8", "8:8", "2:4", "0:4", "9:8", "16:32", "int8", "int4", "q8_0", "q4_1", "q5_0", "q4_k", "q6_k", 256,
    32, 64, 96, 128, "f16", "bf16",
    "f32", "I8", "BF16", "U8", "F64",
    [], {}, [1], [[]], [2**40, 2**40], [0, 0], [-1], "x" * 300, "../../etc/passwd", "\u0000",
]  # fmt: skip


def bases(root: Path) -> list[Path]:
    """Folders of every kind, value type and head."""
    found = []
    for family, tied, pattern, weights in (
        ("llama", True, "2:4", "int8"), ("qwen2", False, "4:8", "bf16"), ("gemma3", True, "unstructured", "f16"),
        ("llama", False, None, "int8"), ("qwen2", True, "unstructured", "int8"), ("llama", True, "2:8", "f16"),
        ("llama", True, "2:4", "int4"), ("qwen2", False, "4:8", "int4"), ("gemma3", True, "2:8", "int4"),
        ("llama", False, "unstructured", "int4"), ("qwen2", True, None, "int4"),
    ):  # fmt: skip
        name = f"{len(found)}-{family}"
        source = save(build(family, tied), root / name, pattern, torch.bfloat16 if weights == "bf16" else torch.float16)
        head = "int4" if weights == "int4" and tied else None
        pack(str(source), root / f"{name}-packed", weights=weights, head_weights=head)
        found.append(root / f"{name}-packed")
    for tied, head in ((True, None), (False, "q6_k")):  # a GGUF file's own types
        file, folder = root / f"{tied}.gguf", root / f"{tied}-stored"
        quantised(file, tied, head=head)
        pack(str(file), folder, weights="stored")
        found.append(folder)
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value but the empty one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, part in inside for p in ((*path, key), *places(part, (*path, key)))]


def change_json(value: Any, rng: random.Random) -> None:
    """Replace, remove, copy or nudge something."""
    path = rng.choice(places(value) or [()])
    if not path:
        return
    for key in path[:-1]:
        value = value[key]
    how, key = rng.randrange(4), path[-1]
    if how == 0:
        value[key] = rng.choice(ODD)
    elif how == 1:
        del value[key]
    elif how == 2 and isinstance(value, dict):
        value[rng.choice(["new", f"{key}x", *map(str, value)])] = value[key]
    elif isinstance(value[key], int | float):
        value[key] += rng.choice([-64, -8, -1, 1, 8, 64])


def change_bytes(data: bytearray, rng: random.Random) -> None:
    """Flip, overwrite, cut, add or move."""
    how, at = rng.randrange(6), rng.randrange(max(1, len(data)))
    if not data:
        data += rng.randbytes(8)
    elif how <= 1:
        data[at] ^= 1 << rng.randrange(8)
    elif how == 2:
        size = rng.randrange(1, 64)
        data[at : at + size] = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    elif how == 3:
        del data[at:]
    elif how == 4:
        data += rng.randbytes(rng.randrange(1, 64))
    else:
        size, to = rng.randrange(1, 64), rng.randrange(len(data))
        data[to : to + size] = data[at : at + size]


def damage(file: Path, rng: random.Random) -> None:
    """One change of the file at least, by its own format or without regard to it."""
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if file.suffix == ".json" and rng.random() < 0.8:
            try:
                value = json.loads(data)
                change_json(value, rng)
                data = bytearray(json.dumps(value).encode())
                continue
            except ValueError:  # bytes were changed before
                pass
        elif file.suffix == ".safetensors" and rng.random() < 0.5:
            size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
            try:
                header = json.loads(data[8 : 8 + size])
                change_json(header, rng)
                text = json.dumps(header).encode()
                data = bytearray(struct.pack("<Q", len(text)) + text + data[8 + size :])
                continue
            except ValueError:
                pass
        change_bytes(data, rng)
    file.write_bytes(data)


def outcome(folder: Path) -> str:
    """ "loaded" or "refused"; anything else is a failure that raises."""
    try:
        reader = reader_of(folder)
        for name in sorted(reader.names):
            if name.endswith("_proj.weight"):
                reader.matrix(name)
        engine = Engine(folder, threads=1)
        logits = engine.forward([5, 17, 99][: engine.max_length or 3], 1)
        assert logits.shape[0] == 1 and logits.dtype == torch.float32
        return "loaded"
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1500, f"not one clear sentence: {text!r}"
        return "refused"


def run(cases: Sequence[int], seed: int) -> Counter[str]:
    """Damage and try, case by case."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, track("damaged folders", len(cases), "cases") as tracker:
        root, work = Path(scratch), Path(scratch) / "case"
        folders = bases(root)
        assert SMALL["vocab_size"] == 320 and all(outcome(folder) == "loaded" for folder in folders)
        for case in cases:
            rng = random.Random(f"{seed}-{case}")
            base = rng.choice(folders)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            for name in set(FILES):
                shutil.copyfile(base / name, work / name)
            damage(work / rng.choice(FILES), rng)
            try:
                found[outcome(work)] += 1
            except Exception as error:
                kept = Path(tempfile.mkdtemp(prefix=f"fuzz-{case}-"))
                shutil.copytree(work, kept, dirs_exist_ok=True)
                raise AssertionError(f"case {case} of seed {seed} (kept in {kept}): {error!r}") from error
            tracker.advance()
    return found


def main(run: Callable[[Sequence[int], int], Counter[str]], description: str) -> None:
    """The command line of a fuzzer; what `run` counted as JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    found = run(range(chosen.first, chosen.first + chosen.cases), chosen.seed)
    sys.stdout.write(json.dumps(dict(found)) + "\n")


if __name__ == "__main__":
    main(run, __doc__)
