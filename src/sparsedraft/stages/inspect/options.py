"""The options of `inspect`."""

from typing import Annotated

from pydantic import Field

from sparsedraft.base import bounds
from sparsedraft.base.options import Argument, Exists, StageOptions
from sparsedraft.models.names import check_model
from sparsedraft.native.cache_size import CONTEXT


class InspectOptions(StageOptions):
    """What `inspect` looks at."""

    checkpoint: Annotated[str, Argument(), Exists(check_model)] = Field(
        description="A Hugging Face id, a checkpoint folder or a .gguf file."
    )
    context_length: int = Field(
        CONTEXT, ge=1, le=bounds.LENGTH, description="Tokens of a text whose keys and values are counted."
    )
