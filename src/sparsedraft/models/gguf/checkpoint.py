"""A GGUF file, read by transformers and written as an ordinary checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.models.gguf.complete import check_whole, named
from sparsedraft.models.gguf.header import Header
from sparsedraft.models.gguf.settings import settle
from sparsedraft.models.gguf.tokenizer import load_tokenizer, save_tokenizer

FILE = "model.gguf"


def write_checkpoint(header: Header, source: Path, out: Path, tied: bool, gpt2_split: bool) -> None:
    """Write the checkpoint of the GGUF file in `source`, named FILE, to the new folder `out`, in bfloat16.

    `tied` and `gpt2_split` as in `convert_gguf`. UserError for a file that is not what its header says.
    """
    try:
        config = AutoConfig.from_pretrained(source, gguf_file=FILE)
        config.tie_word_embeddings = "output.weight" not in header.shapes  # transformers does not always notice
        settle(config, header)
        check_whole(config, header)
        tokenizer = load_tokenizer(source, FILE, header, gpt2_split)
        plain = _plain(_load(header, source, config), tied)
    except UserError:
        raise
    except Exception as error:  # whatever a library raises on a file that is not what it says
        raise UserError(
            f"model {header.path}: not a readable GGUF language model ({first_line(error)}); "
            "copy it again, or take the original checkpoint."
        ) from None
    ends = [header.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if len(ids := sorted({end for end in ends if isinstance(end, int)})) > 1:  # transformers reads the first only
        plain.generation_config.eos_token_id = ids
    plain.save_pretrained(out)
    save_tokenizer(tokenizer, header, out)


def _load(header: Header, source: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model in float32; UserError where a tensor is missing, left over or of another shape."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=FILE,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # these are refused below
    )
    model, info = loaded
    faults = {"missing": info["missing_keys"], "left over": info["unexpected_keys"]}
    faults["of another shape"] = [name for name, *_ in info["mismatched_keys"]]
    for fault, names in faults.items():
        if names:
            raise UserError(
                f"model {header.path}: {named(sorted(names))} {fault} where transformers reads it as a "
                f"{config.model_type}; take the original checkpoint."
            )
    return model


def _plain(model: PreTrainedModel, tied: bool) -> PreTrainedModel:
    """The same model in bfloat16, not marked as quantised: transformers refuses to save one that is."""
    config, state = model.config, {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if tied:
        config.tie_word_embeddings = True
        state["model.embed_tokens.weight"] = state["lm_head.weight"]
    del model  # its weights are in float32
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    plain.tie_weights()
    return plain
