"""A command's output is loaded once before it gets its name, so that no unreadable checkpoint is left behind."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.models.skeleton import UNREADABLE


def check_loads(folder: Path) -> None:
    """Raise UserError unless transformers loads the model in `folder` with every tensor that its config asks for.

    The weights stay on disk (torch's meta device): transformers compares names, shapes and config. Tensors beside the
    model (another head, a vision tower) are allowed: the source had them, too.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (*UNREADABLE, OSError, SafetensorError, UserError) as error:
        raise UserError(f"what was written cannot be loaded ({first_line(error)}), so it was not kept.") from None
    for kind, what in (("missing_keys", "are missing"), ("mismatched_keys", "have another shape")):
        if names := sorted(map(str, loaded[1][kind])):
            raise UserError(f"what was written cannot be loaded (tensors {what}: {names[0]} …), so it was not kept.")
