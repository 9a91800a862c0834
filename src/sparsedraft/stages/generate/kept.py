"""Where `auto` keeps what it learned of a pair on this machine: a small file in the user's cache.

The file lies in the folder "policy" of the cache (see sources.cache_folder), by the digest of what its figures depend
on: both models, how they go together, how tokens are drawn, and what runs them. A file that is damaged or foreign is
not there, and a new one takes its place.
"""

import contextlib
import json
import os
import platform
import tempfile
from pathlib import Path

import torch

from sparsedraft.base.console import console
from sparsedraft.base.hashing import sampled_hash, text_hash
from sparsedraft.models.names import LOOKUP
from sparsedraft.models.sources import cache_folder
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.kept import VERSION, KeptState, give, state_of
from sparsedraft.speculate.policy.meter import Meter
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.writers.loaded import LoadedModel

LARGEST = 1 << 20  # bytes; such a file has a few thousand
MOST = 256  # files; the oldest make room


class KeptFile:
    """What is kept of one pair, with these options, on this machine. In a pair that has no folders nothing is kept."""

    def __init__(self, pair: Pair, options: GenerateOptions) -> None:
        key = None if options.learned == "off" else key_of(pair, options)
        self.key, self.read = key, options.learned == "keep"
        self.path = None if key is None else cache_folder() / "policy" / f"{text_hash(json.dumps(key))[:24]}.json"

    def start(self, meter: Meter) -> None:
        """Let `meter` start from what is kept, if anything is."""
        if self.path is None or not self.read:
            return
        try:
            if self.path.is_file() and self.path.stat().st_size <= LARGEST:
                give(KeptState.model_validate_json(self.path.read_bytes()), meter)
        except (OSError, ValueError):  # it is not there, damaged, or of another version
            return

    def write(self, meter: Meter) -> None:
        """Keep what `meter` learned. Where that fails, only the next run's first tokens take longer."""
        if self.path is None:
            return
        try:
            text = state_of(meter).model_dump_json()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, text)
            _make_room(self.path.parent)
        except ValueError:  # figures that no machine has
            return
        except OSError as error:
            console.print(
                f"what auto learned is not kept in {self.path.parent} ({error})",
                style="dim",
                markup=False,
                soft_wrap=True,
            )


def key_of(pair: Pair, options: GenerateOptions) -> dict[str, object] | None:
    """What the figures of a pair depend on; None where a model has no folder by which it could be known again."""
    models = [pair.target] if pair.drafter is None else [pair.target, pair.drafter]
    if any(model.source is None for model in models):
        return None
    return {
        "version": VERSION,
        "models": [_known_by(model) for model in models],
        "route": pair.route if pair.drafter else LOOKUP,
        "beside": LOOKUP if pair.lookup else None,
        "reads": str(pair.window),
        **({} if pair.mask_token is None else {"drafting": "parallel"}),
        "drafter_temperature": pair.drafter_temperature,
        "drawn": options.verification if options.temperature > 0 else "greedy",
        "tree": options.tree,
        "arithmetic": [options.dtype, options.device, options.cache],
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _known_by(model: LoadedModel) -> list[object]:
    """What runs a model, and the digest of its folder: the names, sizes and pieces of its files."""
    assert model.source is not None, "asked for models of a folder only"
    files = sorted(p for p in model.source.iterdir() if p.suffix in (".json", ".safetensors") and p.is_file())
    digest = text_hash("".join(f"{file.name}\0{sampled_hash(file)}\n" for file in files), "surrogateescape")
    return ["native" if model.native else "transformers", digest]


def cpu_name() -> str:
    """What the system calls this CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _replace(path: Path, text: str) -> None:
    """Write a file under a name of its own, as several processes may, and rename it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _make_room(folder: Path) -> None:
    """Remove the oldest files beyond MOST, among them what killed processes left."""
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # it is just gone
            if entry.is_file(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    for _, path in sorted(found)[:-MOST]:
        Path(path).unlink(missing_ok=True)
