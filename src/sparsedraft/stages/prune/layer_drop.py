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
from sparsedraft.stages.prune import sequential
from sparsedraft.stages.prune.sequential import Activations
from sparsedraft.stages.prune.streamed import Streamed

NUMBERS = ("layer_idx", "layer_id", "layer_number", "training")  # what a module calls its place; and its mode


@torch.no_grad()
def last_token_states(model: Streamed, ids: Tensor, folder: Path) -> Tensor:
    """Hidden states [layers + 1, n, hidden] before each layer and after the last, at each sequence's last token.

    Kept in `folder` layer by layer, so that a killed walk goes on. Raises UserError where one is NaN or infinite.
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


def layers_to_match(states: Tensor, macs: Sequence[int], rest: int, wanted: int) -> int:
    """How many layers to drop so that the MACs left come nearest to `wanted` (0: the model as it is is nearest).

    `macs` are those of each layer, `rest` those of the head; the block that would go is known for each number.
    """

    def left(n: int) -> int:
        first = block(states, n) if n else 0
        return rest + sum(macs) - sum(macs[first : first + n])

    return min(range(len(macs)), key=lambda n: abs(left(n) - wanted))


def check_layers(before: Sequence[nn.Module], after: Sequence[nn.Module], stay: Sequence[int]) -> None:
    """Raise UserError where a layer of the cut model does something else than the one it was (a part or setting of it
    follows from its number), of layers without weights."""
    for index, old in enumerate(stay):
        was, now = _settings(before[old]), _settings(after[index])
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                raise UserError(
                    f"layer {old} would become another as number {index} of {len(stay)} ({name} is {was.get(name)!r} "
                    f"there and {now.get(name)!r} here): this model's layers cannot be dropped."
                )


def _settings(layer: nn.Module) -> dict[str, object]:
    """What a layer is made of: kinds and shapes of its parts, and plain settings, but for its number."""
    found: dict[str, object] = {}
    for name, module in layer.named_modules():
        found[f"{name} itself"] = type(module).__name__
        found |= {f"{name}.{key}": tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        found |= {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            if isinstance(value, str | int | float | None) and not key.startswith("_") and key not in NUMBERS
        }
    return found


def cut_config(config: PretrainedConfig, stay: Sequence[int]) -> None:
    """Make `config` that of the model with only the layers `stay`, in place; its lists by layer are cut, too."""
    text = config.get_text_config()
    before = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == before and "layer" in key:
            setattr(text, key, [value[i] for i in stay])
    text.num_hidden_layers = len(stay)
