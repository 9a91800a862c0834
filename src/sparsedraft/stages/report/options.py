"""The options of `report`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sparsedraft.base.fields import Replacing
from sparsedraft.base.options import Argument


class ReportOptions(Replacing):
    """What `report` shows."""

    folder: Annotated[Path, Argument()] = Field(description="The folder of a finished run, or of distilled data.")
