"""Damaged native caches, most of them signed again: each is used as far as it is sound, and made again where it is not.

    PYTHONPATH=tests/support python tests/tools/fuzz_cached.py [--cases 100000] [--seed 0]

A case takes the cached matrices of a tiny packed folder (see sparsedraft.native.layout_cache), changes bytes of the
streams or fields of the index, signs the result as if that had been cached, and reads a text with one set of kernels.
Loading never fails, and no kernel reads or writes outside of the matrix: each stream lies in memory of exactly its
size, so that AddressSanitizer (`make sanitize`) sees the first byte too many.
"""

import contextlib
import ctypes
import hashlib
import json
import random
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import fuzz_packed
from fuzz_packed import ODD, change_bytes
from packed_folders import build, save
from sparsedraft.base.console import track
from sparsedraft.native import architecture, layout, layout_cache, model
from sparsedraft.native import extension as native
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.native.session import Engine
from stages import pack

TEXT = [5, 17, 99]
MOVABLE = {"tiles", "order", "begin", "end"}  # fields that may be sound and other ones; harm to the rest is found


@dataclass(frozen=True)
class Base:
    """A packed folder, what was kept of it, and the logits after TEXT."""

    folder: Path
    index: bytes
    streams: bytes
    logits: torch.Tensor


def bases(root: Path) -> list[Base]:
    """Of every layout and type of values."""
    folders = fuzz_packed.bases(root)
    for pattern, weights in (("1:16", "int8"), ("2:16", "bf16")):  # sparse enough for windows
        dtype = torch.bfloat16 if weights == "bf16" else torch.float16
        source = save(build("llama", False), root / f"window-{weights}", pattern, dtype)
        pack(str(source), root / f"window-{weights}-packed", weights=weights)
        folders.append(root / f"window-{weights}-packed")
    bases = []
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        config["num_hidden_layers"] = 1
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:1]
        (folder / "config.json").write_text(json.dumps(config))  # one layer has them all, in half the time
        logits = Engine(folder, threads=1).forward(TEXT)
        at = layout_cache.location(folder)
        assert at is not None
        kept = (at / "index.json").read_bytes(), (at / "streams").read_bytes()
        bases.append(Base(folder, *kept, logits))
    layouts = {part["parts"]["layout"] for base in bases for part in json.loads(base.index)["matrices"].values()}
    assert layouts >= {"dense", "2:4", "N:8", "window"}
    return bases


def change_field(matrices: dict[str, Any], rng: random.Random) -> str:
    """Replace, remove, swap, copy or nudge something of one matrix; the name of its field."""
    part = rng.choice(list(matrices.values()))
    fields = part["parts"]
    place = rng.choice([part, fields, fields, *(fields[name] for name in ("tiles", "order", "scale") if fields[name])])
    key = rng.choice(range(len(place)) if isinstance(place, list) else list(place))
    other = rng.choice(range(len(place)) if isinstance(place, list) else list(place))
    how = rng.randrange(5)
    if how == 0:  # mostly of the same type: what else there is the schema stops
        alike = [odd for odd in ODD if type(odd) is type(place[key])]
        place[key] = rng.choice(alike if alike and rng.random() < 0.8 else ODD)
    elif how == 1 and (isinstance(place, list) or rng.random() < 0.2):
        del place[key]
    elif how == 2:
        place[key], place[other] = place[other], place[key]
    elif how == 3:
        place[key] = place[other]
    elif isinstance(place[key], int | float):
        place[key] += rng.choice([-64, -8, -1, 1, 8, 64, 2**31, -(2**31)])
    names = {id(fields[name]): name for name in fields}
    return names.get(id(place), f"{key} {other}")


def damaged(base: Base, rng: random.Random) -> tuple[bytes, bytes, bool]:
    """(index, streams, whether what is read must still have the right bits if it is read at all)."""
    index, streams, exact = json.loads(base.index), bytearray(base.streams), True
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if rng.random() < 0.3:
            change_bytes(streams, rng)
            exact = False
        elif rng.random() < 0.05:
            fuzz_packed.change_json(index, rng)
            exact = False
        else:
            try:
                touched = change_field(index["matrices"], rng)
            except (TypeError, KeyError, IndexError, ValueError, AttributeError):  # an earlier change took it away
                continue
            exact = exact and not MOVABLE & set(touched.split())
    if isinstance(index, dict) and rng.random() < 0.95:
        text = json.dumps(index.get("matrices")).encode()
        index["sha256"] = hashlib.sha256(bytes(streams) + text).hexdigest()
    return json.dumps(index).encode(), bytes(streams), exact


def exactly(stream: np.ndarray) -> np.ndarray:
    """A copy on a cache line's beginning, in a block of memory of its own size."""
    libc, block = ctypes.CDLL(None), ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(max(1, len(stream)))) == 0
    found = np.ctypeslib.as_array(ctypes.cast(block, ctypes.POINTER(ctypes.c_uint8)), stream.shape)
    found[:] = stream
    weakref.finalize(found, libc.free, block)
    return found


class Remembered:
    """`function`, called once for each first argument."""

    def __init__(self, function: Callable[..., Any], key: Callable[[Any], Hashable] | None = None) -> None:
        self.function, self.key, self.known = function, key, dict[Hashable, Any]()

    def __call__(self, argument: Any) -> Any:
        key = argument if self.key is None else self.key(argument)
        if key not in self.known:
            self.known[key] = self.function(argument)
        return self.known[key]


def remembering(folder: Path) -> PackedReader:
    """The weights in `folder`, each of which is read once."""
    weights = PackedReader(folder)
    for method in ("matrix", "vector", "scale"):
        setattr(weights, method, Remembered(getattr(weights, method)))
    return weights


@contextlib.contextmanager
def watched(root: Path) -> Iterator[Counter[str]]:
    """A native cache under `root` for models of any size; counts the matrices that are taken from it or laid out.

    What lies in the packed folders is read once, as nobody harms them.
    """
    calls: Counter[str] = Counter()
    module, lay_out = native.extension(), layout.lay_out
    matrix_of = module.matrix_of

    def taken(parts: Any, stream: np.ndarray) -> Any:
        found = matrix_of(parts, exactly(stream))
        calls["taken"] += 1
        return found

    def laid(*arguments: Any) -> Any:
        calls["laid out"] += 1
        return lay_out(*arguments)

    environment = {"SPARSEDRAFT_NATIVE_CACHE": "copy", "SPARSEDRAFT_CACHE": str(root)}
    with (
        mock.patch.dict("os.environ", environment),
        mock.patch.object(layout_cache, "SMALLEST", 0),
        mock.patch.object(module, "matrix_of", taken),
        mock.patch.object(layout, "lay_out", laid),
        mock.patch.object(model.checkpoint, "read_config", Remembered(model.checkpoint.read_config)),
        mock.patch.object(architecture, "rotary_embedding", Remembered(architecture.rotary_embedding, id)),
        mock.patch.object(model, "reader_of", Remembered(remembering)),
    ):
        yield calls


def run(cases: Sequence[int], seed: int) -> Counter[str]:
    """Damage and read, case by case; how many caches were used whole, in parts, or not at all."""
    found: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        watched(Path(scratch) / "cache") as calls,
        track("damaged caches", len(cases), "cases") as tracker,
    ):
        known = bases(Path(scratch))
        for case in cases:
            rng = random.Random(f"{seed}-{case}")
            base, kernels = rng.choice(known), rng.choice(native.extension().names())
            index, streams, exact = damaged(base, rng)
            at = layout_cache.location(base.folder)
            assert at is not None
            at.mkdir(exist_ok=True)
            (at / "index.json").write_bytes(index)
            (at / "streams").write_bytes(streams)
            calls.clear()
            writes = (
                contextlib.nullcontext() if case % 10 == 0 else mock.patch.object(layout_cache.LayoutCache, "write")
            )
            try:
                with writes:  # of what was made again, now and then: it takes longer than all the rest
                    logits = Engine(base.folder, threads=1, kernels=kernels).forward(TEXT)
                if exact or not calls["taken"]:
                    assert torch.equal(logits, base.logits), "other bits"
            except Exception as error:
                kept = Path(tempfile.mkdtemp(prefix=f"fuzz-cached-{case}-"))
                (kept / "index.json").write_bytes(index)
                (kept / "streams").write_bytes(streams)
                raise AssertionError(f"case {case} of seed {seed} ({base.folder}, {kept}): {error!r}") from error
            found["used" if not calls["laid out"] else "used in part" if calls["taken"] else "made again"] += 1
            tracker.advance()
    return found


if __name__ == "__main__":
    fuzz_packed.main(run, __doc__)
