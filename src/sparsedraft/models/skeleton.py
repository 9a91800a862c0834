"""The skeleton of a model: its modules as a config describes them, with no memory behind their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sparsedraft.base.errors import UserError, first_line

# the errors of transformers for fields of a config.json that it does not check
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, StrictDataclassError)


@contextmanager
def building(config: PretrainedConfig) -> Iterator[None]:
    """Turns what transformers raises for an impossible `config` into a UserError."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(
            f"a config.json of type {config.model_type} describes no model that can be built ({first_line(error)}): "
            "copy it again."
        ) from None


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model of `config` with no memory behind its weights (torch's meta device); UserError where there is none."""
    with building(config), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
