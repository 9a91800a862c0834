"""From a GGUF file to an ordinary checkpoint folder, in the cache."""

import hashlib
import math
import os
import tempfile
from pathlib import Path

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import file_hash
from sparsedraft.models.config import older_names
from sparsedraft.models.gguf.header import Header, Strings, shown
from sparsedraft.models.gguf.parts import join, read_parts

CONVERSION = 2  # raised with every change of a conversion's result, so that the cache's older ones are not used
NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
TOKENS = "tokenizer.ggml.tokens"


def convert_gguf(
    path: Path, folder: Path | None = None, *, cache: Path, tied: bool = False, gpt2_split: bool = False
) -> Path:
    """De-quantise a GGUF file into an ordinary bfloat16 checkpoint `folder` (default: in `cache`, by its hash).

    `path` may be any part of a split file: the other parts are found beside it. Tokenizer, chat template and config
    come from the file itself. `tied`: the model's head is its embedding; where the file holds both, the head's copy,
    which is finer, serves for both. `gpt2_split`: see `load_tokenizer`. UserError for a file that is incomplete, or
    that has settings which transformers' model cannot express; nothing is cached then.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"model {path}: reading GGUF needs the extra: pip install 'sparsedraft[gguf]'.") from None
    from sparsedraft.models.gguf.checkpoint import FILE, write_checkpoint  # transformers is slow to import

    parts = read_parts(path)
    _check_keys(parts[0], sum(len(part.tensors) for part in parts))
    folder = folder or cache / f"gguf-{_key(parts)}"
    if (folder / "config.json").is_file():
        return folder
    console.print(f"converting {path.name} to a checkpoint in {folder}", markup=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source, work = Path(scratch) / "source", Path(scratch) / "work"
        source.mkdir()
        if len(parts) > 1:
            header = join(parts, source / FILE)
        else:
            header = parts[0]
            os.symlink(path.resolve(), source / FILE)
        write_checkpoint(header, source, work, tied, gpt2_split)
        older_names.complete(work)
        os.chmod(work, 0o755)
        try:
            os.rename(work, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # otherwise another process was first, with the same bytes
                raise
    return folder


def _key(parts: list[Header]) -> str:
    """A hash of the parts' bytes and of the conversion's version: the name of the result in the cache."""
    digest = hashlib.sha256(f"conversion {CONVERSION}".encode())
    for part in parts:
        digest.update(bytes.fromhex(file_hash(part.path)))
    return digest.hexdigest()[:24]


def _check_keys(header: Header, tensors: int) -> None:
    """UserError for an architecture whose conversion is not tested, and for keys that no model can have."""
    from sparsedraft.models.gguf.settings import OWN  # transformers is slow to import

    if header.architecture not in OWN:
        raise UserError(
            f"model {header.path} is of the architecture {shown(header.architecture)}: GGUF files of "
            f"{', '.join(OWN)} can be converted; for others take the original checkpoint."
        )
    for name in NEEDED:
        value = header.own(name)
        if not isinstance(value, int | list) or (value == 0 and header.architecture != "mamba"):
            key = f"{header.architecture}.{name}"
            raise UserError(f"model {header.path}: its {key} is {shown(value)}; download it again.")
    if all(header.own(name) is None for name in EPSILONS):
        raise UserError(f"model {header.path} has no {header.architecture}.{EPSILONS[0]}; download it again.")
    if not isinstance(header.keys.get(TOKENS), Strings):
        raise UserError(f"model {header.path} has no tokenizer (no {TOKENS}); take a file that has one.")
    for key, value in header.keys.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"model {header.path}: its {key} is {value}; download it again.")
    if header.own("block_count") > tensors:
        raise UserError(
            f"model {header.path} claims {header.own('block_count'):,} layers and holds {tensors} tensors: "
            "copy or download it again, with all its parts if it was split."
        )
