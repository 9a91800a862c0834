"""Layer-pruning (Gromov et al. 2024): drop the block of layers that changes the hidden state's direction least."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsedraft.decoder import decoder_layers, linears_of
from sparsedraft.measure.macs import macs_of_model
from sparsedraft.prune import sequential


@torch.no_grad()
def last_token_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Hidden states [layers + 1, n, hidden] before each layer and after the last, at each row's last token."""
    states = []
    activations = None
    for _, _, activations in sequential.walk(model, ids):
        states.append(torch.cat([h[:, -1].float().cpu() for h in activations.hidden]))
    assert activations is not None
    states.append(torch.cat([h[:, -1].float().cpu() for h in activations.hidden]))
    return torch.stack(states)


def angular_distances(states: Tensor, n: int) -> Tensor:
    """arccos(cos(h_l, h_{l+n})) / π for every first layer l, mean over rows: states [layers + 1, rows, hidden]."""
    cosine = torch.cosine_similarity(states[:-n].double(), states[n:].double(), dim=-1)
    return (cosine.clamp(-1, 1).arccos() / math.pi).mean(-1)


def layers_to_match(model: PreTrainedModel, macs: int) -> int:
    """How many of `model`'s layers (alike in size) to drop so that its MACs per token come nearest to `macs`."""
    layers = decoder_layers(model)
    each = sum(linear.weight.numel() for linear in linears_of(layers[0]).values())
    n = round((macs_of_model(model) - macs) / each)
    return min(max(n, 1), len(layers) - 1)


def drop(model: PreTrainedModel, first: int, n: int) -> None:
    """Take the layers first … first+n-1 out of `model`, in place; its config and cache indices are right afterwards."""
    layers = decoder_layers(model)
    for name, module in model.named_modules():
        if module is layers:
            owner, attribute = name.rpartition(".")[0], name.rpartition(".")[2]
            break
    stay = [i for i in range(len(layers)) if not first <= i < first + n]
    setattr(model.get_submodule(owner), attribute, nn.ModuleList(layers[i] for i in stay))
    config = model.config.get_text_config()
    before = len(layers)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before and key.endswith(("_layers", "layer_types")):
            setattr(config, key, [value[i] for i in stay])
    config.num_hidden_layers = len(stay)
    for index, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where its keys and values lie in the cache
                module.layer_idx = index  # type: ignore[assignment]
