"""The options of `export`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sparsedraft.base.options import Argument, Exists, StageOptions
from sparsedraft.models.names import check_model

Kind = Literal["q4_0", "q8_0", "bf16"]


class ExportOptions(StageOptions):
    """What `export` does: which checkpoint becomes which file."""

    checkpoint: Annotated[str, Argument(), Exists(check_model)] = Field(
        description="The checkpoint: a folder, packed or not, or a Hugging Face id."
    )
    gguf: Kind = Field(
        description="Type of the matrices: q4_0, q8_0 (codes with a scale for each 32 inputs) or bf16; with q4_0 the "
        "embedding and the head are q8_0, unless they are packed in int4."
    )
    out: Path = Field(description="The .gguf file to write.")
    overwrite: bool = Field(False, description="Replace a GGUF file that is there.")
