"""How our proposer drafts: the entry "sparsedraft" of vLLM's --additional-config."""

import re
from typing import Any, Literal

from pydantic import Field, ValidationError

from sparsedraft.base import bounds
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Cache, OwnWindow, Uag
from sparsedraft.base.options import sentence
from sparsedraft.models.names import LOOKUP

ENTRY = "sparsedraft"
MEND = f'give --additional-config \'{{"{ENTRY}": {{"drafter": "FOLDER"}}}}\''


class Settings(OwnWindow):
    """What may stand in the entry; the names are those of `serve`'s options."""

    drafter: str = Field(description="A drafter, or 'lookup' (prompt look-up).")
    lookup: bool = Field(
        False, description="Beside the drafter, draft from the text so far where that is expected to pay more."
    )
    policy: Literal["constant", "auto"] = Field(
        "constant", description="num_speculative_tokens a step; or auto: what pays best as measured, up to that."
    )
    uag: Uag = "auto"
    cache: Cache = "int16"
    threads: int | None = Field(
        None, ge=1, le=bounds.ROWS, description="Threads to draft on; default: as many as torch has in that process."
    )


def settings_of(additional_config: Any) -> Settings:
    """The settings in vLLM's additional configuration; UserError, one sentence, where they are missing or wrong."""
    entry = additional_config.get(ENTRY) if isinstance(additional_config, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"additional_config has {ENTRY} {entry!r}, which names no drafter: {MEND}.")
    try:
        settings = Settings(**entry)
    except ValidationError as error:
        raise UserError(f"additional_config, {ENTRY}: {as_in_json(sentence(Settings, error))}") from None
    if settings.drafter == LOOKUP and (settings.lookup or settings.drafter_window):
        raise UserError(
            f"additional_config, {ENTRY}: lookup and drafter_window go beside a model, and drafter is {LOOKUP}: leave "
            "them out, or name a folder."
        )
    return settings


def as_in_json(told: str) -> str:
    """The sentence with the names of options as JSON has them."""
    return re.sub(r"--([a-z-]+)", lambda found: found[1].replace("-", "_"), told)
