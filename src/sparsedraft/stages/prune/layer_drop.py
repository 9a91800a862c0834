"""Layer-pruning (Gromov et al. 2024): drop the block of layers that changes the hidden state's direction least."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sequential import Activations
from sparsedraft.layerwise.streamed import Streamed

NUMBERS = ("layer_idx", "layer_id", "layer_number", "training")  # names of a module's place, and of its mode


@torch.no_grad()
def last_token_states(model: Streamed, ids: Tensor, folder: Path) -> Tensor:
    """Hidden states [layers + 1, n, hidden] before each layer and after the last, at each sequence's last token.

    They are kept in `folder` layer by layer, so that a killed walk goes on. Raises UserError if one is NaN or infinite.
    """
    activations = Activations(model, ids, folder)

    def keep(index: int) -> None:
        states = torch.cat([batch[:, -1].float().cpu() for batch in activations.batches(index)])
        if not bool(torch.isfinite(states).all()):
            raise UserError(
                f"the hidden states after layer {index - 1} hold NaN or infinity: the checkpoint is damaged, or "
                "the arithmetic too narrow (try float32)."
            )
        with write_atomic(folder / f"states-{index:05}.safetensors") as temporary:
            save_file({"states": states}, temporary)

    with track("angular distances", len(model), "layers") as tracker:
        tracker.advance(activations.start)
        for index, _ in sequential.walk(model, activations):
            keep(index)
            tracker.advance()
    keep(len(model))
    return torch.stack([load_file(folder / f"states-{i:05}.safetensors")["states"] for i in range(len(model) + 1)])


def angular_distances(states: Tensor, n: int) -> Tensor:
    """arccos(cos(h_l, h_{l+n})) / π for every first layer l, mean over rows: states [layers + 1, rows, hidden]."""
    cosine = torch.cosine_similarity(states[:-n].double(), states[n:].double(), dim=-1)
    return (cosine.clamp(-1, 1).arccos() / math.pi).mean(-1)


def block(states: Tensor, n: int) -> int:
    """First layer of the block of `n` layers with the smallest angular distance."""
    return int(angular_distances(states, n).argmin())


def layers_to_match(states: Tensor, macs: Sequence[int], rest: int, goal: int) -> int:
    """How many layers to drop so that the MACs left come nearest to `goal`; 0 where the whole model is nearest.

    `macs` are those of each layer, `rest` those of the head. For each number of layers, `block` says which would go.
    """

    def left(n: int) -> int:
        first = block(states, n) if n else 0
        return rest + sum(macs) - sum(macs[first : first + n])

    return min(range(len(macs)), key=lambda n: abs(left(n) - goal))


def check_layers(before: Sequence[nn.Module], after: Sequence[nn.Module], stay: Sequence[int]) -> None:
    """Raise UserError where a layer would change its work because a part or setting of it follows from its number.

    `before` and `after` are the layers, without weights, of the model and of the cut model.
    """
    for index, old in enumerate(stay):
        was, now = _settings(before[old]), _settings(after[index])
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                raise UserError(
                    f"layer {old} would become another as number {index} of {len(stay)} ({name} is {was.get(name)!r} "
                    f"there and {now.get(name)!r} here): this model's layers cannot be dropped."
                )


def _settings(layer: nn.Module) -> dict[str, object]:
    """What a layer is made of: types and shapes of its parts, and plain settings except its number."""
    settings: dict[str, object] = {}
    for name, module in layer.named_modules():
        settings[f"{name} itself"] = type(module).__name__
        settings |= {f"{name}.{key}": tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        settings |= {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            if isinstance(value, str | int | float | None) and not key.startswith("_") and key not in NUMBERS
        }
    return settings


def cut_config(config: PretrainedConfig, stay: Sequence[int]) -> None:
    """Change `config` to that of the model with only the layers `stay`; its lists by layer are cut, too."""
    text = config.get_text_config()
    before = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == before and "layer" in key:
            setattr(text, key, [value[i] for i in stay])
    text.num_hidden_layers = len(stay)
