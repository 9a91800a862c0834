"""The stages' functions with the options as keywords, for tests that call them often."""

from pathlib import Path
from typing import Any

from sparsedraft.stages.prune import drop_layers as drop_layers_stage
from sparsedraft.stages.prune import stage as prune_stage
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions


def prune(model: str, out: Path, calibration: str, **options: Any) -> dict[str, Any]:
    return prune_stage.prune(PruneOptions(model=model, out=out, calibration=calibration, **options))


def drop_layers(model: str, out: Path, calibration: str, **options: Any) -> dict[str, Any]:
    return drop_layers_stage.drop_layers(DropLayersOptions(model=model, out=out, calibration=calibration, **options))
