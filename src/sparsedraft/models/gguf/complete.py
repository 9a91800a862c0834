"""Whether a GGUF file holds exactly the tensors of a model: none missing, none left over."""

from math import prod

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.header import Header
from sparsedraft.models.gguf.rope import TENSORS as ROPE

SHOWN = 4  # names in a message


def check_whole(config: PreTrainedConfig, header: Header) -> None:
    """UserError for tensors of `config`'s model that the file lacks, and for tensors of the file that the model lacks.

    No weights are loaded: the model is on torch's meta device. Experts are one tensor a layer in the file, as in
    transformers.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    present = {_plain(name) for name in header.shapes} - {_plain(name) for name in ROPE}
    if header.architecture not in GGUF_CONFIG_ARCHS:  # for those transformers itself reports tensors left over
        processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
        names_known = {_plain(name) for name in get_gguf_hf_weights_map(model, processor)}
        needed = names_known - {"output"} if config.tie_word_embeddings else names_known
        if missing := sorted(needed - present, key=_order):
            raise UserError(
                f"model {header.path} does not hold the whole model: {named(missing)} missing; copy or download it "
                "again, with all its parts if it was split."
            )
        if surplus := sorted(present - names_known, key=_order):
            raise UserError(
                f"model {header.path}: transformers' {config.model_type} has no place for {named(surplus)}, which "
                "would be lost; take the model's original checkpoint."
            )
    holds = sum(prod(shape) for name, shape in header.shapes.items() if name not in ROPE)
    needs = sum(parameter.numel() for parameter in model.parameters())
    if holds != needs:
        raise UserError(
            f"model {header.path}: its tensors hold {holds:,} numbers, the model that its keys describe has {needs:,}; "
            "copy or download it again."
        )


def named(names: list[str]) -> str:
    """The first few of the names of tensors, and how many there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:SHOWN])}{rest})"


def _plain(name: str) -> str:
    return name.removesuffix(".weight")


def _order(name: str) -> tuple[int, str]:
    """Layers in the order of their numbers, what belongs to none of them first."""
    part = name.split(".")
    return (int(part[1]) if part[0] == "blk" and len(part) > 1 and part[1].isdigit() else -1), name
