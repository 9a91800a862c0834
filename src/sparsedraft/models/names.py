"""Names of models: a folder, a .gguf file, or the form that the hub's names have. Nothing is read, and no hub asked."""

import os
import re
from pathlib import Path

from sparsedraft.base.errors import UserError

LOOKUP = "lookup"  # in place of a drafter's name: prompt look-up
BESIDE = f"+{LOOKUP}"  # behind a drafter's name in an evaluation: look-up drafts beside it


def split_lookup(ref: str) -> tuple[str, bool]:
    """(a model, or look-up; whether look-up drafts beside the model) of `ref`; a path that exists is a model."""
    beside = ref.endswith(BESIDE) and not Path(os.path.expanduser(ref)).exists()
    return (ref.removesuffix(BESIDE), True) if beside else (ref, False)


def check_drafter(ref: str) -> None:
    """The same as `check_model`, of what may also be prompt look-up."""
    if ref != LOOKUP:
        check_model(ref)


def check_model(ref: str) -> None:
    """Raise UserError unless `ref` is a folder or a .gguf file that is there, or a name of the form owner/name."""
    path = Path(os.path.expanduser(ref))  # Path.expanduser raises for a user that there is not
    if path.is_dir():
        return
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model {ref}: there is no such GGUF file; check the path.")
        return
    if path.exists():
        raise UserError(f"model {ref} is a file: give a checkpoint folder, a .gguf file or a hub id.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", ref) or not _is_repo_id(ref):
        raise UserError(f"model {ref}: no such folder, and it is not a hub id of the form owner/name; check the path.")


def _is_repo_id(ref: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(ref)
    except HFValidationError:
        return False
    return True
