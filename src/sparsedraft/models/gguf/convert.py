"""From a GGUF file to an ordinary checkpoint folder, in the cache."""

import hashlib
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.hashing import file_hash
from sparsedraft.models.config import older_names
from sparsedraft.models.gguf.header import Header, Strings, shown
from sparsedraft.models.gguf.parts import join, read_parts

CONVERSION = 2  # raised with every change of what a conversion gives, so that no older one is taken from the cache
NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
TOKENS = "tokenizer.ggml.tokens"
FILE = "model.gguf"


def convert_gguf(
    path: Path, folder: Path | None = None, *, cache: Path, tied: bool = False, gpt2_split: bool = False
) -> Path:
    """De-quantise a GGUF file into an ordinary bfloat16 checkpoint `folder` (default: in `cache`, by its hash).

    Of a file that was split any part may be given: the others are found beside it. Nothing else that lies there counts:
    the tokenizer, its chat template and the config are the file's own. `tied`: the head is the embedding, though the
    file may hold both; its copy serves for both, as it is the finer one. `gpt2_split`: see `load_tokenizer`. UserError
    for a file that is not whole, or that says what transformers' model cannot be told; nothing is cached then.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"model {path}: reading GGUF needs the extra: pip install 'sparsedraft[gguf]'.") from None
    parts = read_parts(path)
    _check_keys(parts[0], sum(len(part.tensors) for part in parts))
    folder = folder or cache / f"gguf-{_key(parts)}"
    if (folder / "config.json").is_file():
        return folder
    console.print(f"converting {path.name} to a checkpoint in {folder}", markup=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        alone, made = Path(scratch) / "source", Path(scratch) / "made"
        alone.mkdir()
        if len(parts) > 1:
            header = join(parts, alone / FILE)
        else:
            header = parts[0]
            os.symlink(path.resolve(), alone / FILE)
        _convert(header, alone, made, tied, gpt2_split)
        older_names.complete(made)
        os.chmod(made, 0o755)
        try:
            os.rename(made, folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was first, with the same bytes
                raise
    return folder


def _key(parts: list[Header]) -> str:
    """A name for what these parts become: of their bytes, and of the way they are converted."""
    digest = hashlib.sha256(f"conversion {CONVERSION}".encode())
    for part in parts:
        digest.update(bytes.fromhex(file_hash(part.path)))
    return digest.hexdigest()[:24]


def _check_keys(header: Header, tensors: int) -> None:
    """UserError for an architecture whose conversion has not been tried, and for keys that no model can have."""
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


def _convert(header: Header, alone: Path, out: Path, tied: bool, gpt2_split: bool) -> None:
    """Write the checkpoint of the file in `alone` to the new folder `out`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from sparsedraft.models.gguf.complete import check_whole, named
    from sparsedraft.models.gguf.settings import settle
    from sparsedraft.models.gguf.tokenizer import load_tokenizer, save_tokenizer

    names = header.shapes
    try:
        config = AutoConfig.from_pretrained(alone, gguf_file=FILE)
        config.tie_word_embeddings = "output.weight" not in names  # transformers does not always notice
        settle(config, header)
        check_whole(config, header)
        tokenizer = load_tokenizer(alone, FILE, header, gpt2_split)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone,
            gguf_file=FILE,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # these are refused below
        )
    except UserError:
        raise
    except Exception as error:  # whatever a library raises on a file that is not what it says
        raise UserError(
            f"model {header.path}: not a readable GGUF language model ({first_line(error)}); "
            "copy it again, or take the original checkpoint."
        ) from None
    model, info = loaded
    odd = {"missing": info["missing_keys"], "left over": info["unexpected_keys"]}
    odd["of another shape"] = [name for name, *_ in info["mismatched_keys"]]
    for what, found in odd.items():
        if found:
            raise UserError(
                f"model {header.path}: {named(sorted(found))} {what} where transformers reads it as a "
                f"{config.model_type}; take the original checkpoint."
            )
    config, state = model.config, {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if tied:
        config.tie_word_embeddings = True
        state["model.embed_tokens.weight"] = state["lm_head.weight"]
    del model, loaded  # marked as quantised, so it cannot be saved: move the weights into a plain one
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    plain.tie_weights()
    ends = [header.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if len(known := sorted({end for end in ends if isinstance(end, int)})) > 1:  # transformers reads the first only
        plain.generation_config.eos_token_id = known
    plain.save_pretrained(out)
    save_tokenizer(tokenizer, header, out)
