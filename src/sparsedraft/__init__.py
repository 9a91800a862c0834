"""sparsedraft: sparse, self-distilled drafters for speculative decoding (SD²).

Throughout, p is the target model and q the drafter; K is the number of tokens drafted a step.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from sparsedraft.native.session import Engine

__version__ = "0.1.0"
__all__ = ["Engine", "load", "register"]


def register() -> None:
    """Let transformers' own `from_pretrained` load packed folders, too. It can be called any number of times."""
    from sparsedraft.native import quantizer

    quantizer.register()


def load(
    folder: "str | Path", *, dtype: "torch.dtype | None" = None, device: "str | torch.device" = "cpu"
) -> "PreTrainedModel":
    """The transformers model of a checkpoint, packed or plain, in evaluation mode: for `generate`, or as its assistant.

    `folder` may also be a hub id or a .gguf file; `dtype` (default: float32) is that of the activations and of what is
    not packed. Raises UserError where the checkpoint does not exist, is not whole, or is damaged.
    """
    import torch

    from sparsedraft.native import loading

    return loading.load(folder, dtype=dtype or torch.float32, device=device)


def __getattr__(name: str) -> Any:
    """`Engine`, imported when it is first asked for: it brings torch."""
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparsedraft.native.session import Engine

    return Engine
