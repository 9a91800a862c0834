"""What vLLM cannot run of ours is refused before it starts, in one sentence; vLLM's configuration alone is made."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm import config as plugin
from sparsedraft.integrations.vllm.folder import PackedFolder
from sparsedraft.integrations.vllm.layers import PackedLinearMethod

made = packed_folders.made  # fixture


def configured(model: Path, **more: Any) -> VllmConfig:
    """What vLLM makes of its arguments before anything is loaded."""
    return EngineArgs(
        model=str(model), dtype="float32", enforce_eager=True, max_model_len=64, **more
    ).create_engine_config()


def newer(folder: Path, to: Path) -> Path:
    """A copy that a later version has packed."""
    copytree(folder, to)
    header = json.loads((to / "packed.json").read_text())
    (to / "packed.json").write_text(json.dumps({**header, "version": 9}))
    return to


def test_a_folder_of_a_newer_format(made: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    target, packed = made()
    folder = newer(packed, tmp_path / "newer")
    with pytest.raises(UserError, match=r"newer/packed.json is of version 9, .*: pack"):
        configured(folder)
    drafting = configured(target, speculative_config={"model": str(folder), "num_speculative_tokens": 2})
    assert drafting.speculative_config is not None
    with pytest.raises(UserError, match=r"newer/packed.json is of version 9, .*: pack"):
        VllmConfig.get_quantization_config(drafting.speculative_config.draft_model_config, drafting.load_config)


def test_a_gpu(made: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    folder = made()[1]
    with pytest.raises(UserError, match=rf"{folder} runs on CPUs only in vLLM: serve the checkpoint .*Proposer"):
        plugin.SparsedraftConfig().maybe_update_config(str(folder))


def test_several_processes(made: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "get_tensor_model_parallel_world_size", lambda: 2)
    asked = plugin.SparsedraftConfig()
    asked.maybe_update_config(str(folder := made()[1]))
    with pytest.raises(UserError, match=rf"{folder} runs in one process, .* among 2: give --tensor-parallel-size 1"):
        asked.get_quant_method(SimpleNamespace(), "model.layers.0.mlp.down_proj")  # type: ignore[arg-type]


def test_a_layer_of_other_sizes_or_parts(made: Callable[..., tuple[Path, Path]]) -> None:
    folder = PackedFolder(made()[1])
    layer, name = SimpleNamespace(), "model.layers.0.mlp.down_proj"
    rows, columns = folder.entries[name].rows, folder.entries[name].columns
    with pytest.raises(UserError, match=rf"{name} of {rows} rows and {columns} columns, where vLLM needs {rows} and"):
        PackedLinearMethod(folder, [name]).create_weights(layer, columns // 2, [rows])
    with pytest.raises(UserError, match=rf"{folder.folder} has {name} where vLLM's layer has 2 parts: serve"):
        PackedLinearMethod(folder, [name]).create_weights(layer, columns, [rows // 2, rows // 2])


def test_model_runner_v2_with_our_proposer(
    made: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM says so itself; without triton it has no such runner at all."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    ours = {"model": "sparsedraft.integrations.vllm.Proposer", "num_speculative_tokens": 2}
    with pytest.raises(ValueError, match=r"Model Runner V2 (requires Triton|does not yet support: .*custom_class)"):
        configured(made()[0], speculative_config=ours)
