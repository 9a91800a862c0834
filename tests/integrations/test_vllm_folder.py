"""Which packed matrices a layer of vLLM is made of, and what is refused; none of it needs vLLM."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm.folder import PackedFolder

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LAYERS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
made = packed_folders.made  # fixture


def changed(folder: Path, to: Path, change: Callable[[dict], object]) -> Path:
    """A copy of a packed folder whose header was changed."""
    copytree(folder, to)
    header = json.loads((to / "packed.json").read_text())
    change(header)
    (to / "packed.json").write_text(json.dumps(header))
    return to


@pytest.mark.parametrize("prefix", ["model.", "draft_model.model."])
def test_fused_layers_are_found_under_the_names_of_target_and_drafter(
    made: Callable[..., tuple[Path, Path]], prefix: str
) -> None:
    folder = PackedFolder(made()[1])
    assert folder.names(f"{prefix}layers.1.self_attn.qkv_proj", FUSED) == [
        f"model.layers.1.self_attn.{part}_proj" for part in "qkv"
    ]
    assert folder.names(f"{prefix}layers.0.mlp.down_proj", FUSED) == ["model.layers.0.mlp.down_proj"]
    assert folder.names(f"{prefix}vision.0.fc1", FUSED) == []
    assert folder.embedding() == folder.head() == "model.embed_tokens"


def test_a_folder_is_whole_once_each_of_its_matrices_was_asked_for(made: Callable[..., tuple[Path, Path]]) -> None:
    folder = PackedFolder(made("llama", False)[1])
    folder.embedding()
    for layer in (0, 1):
        for name in LAYERS:
            with pytest.raises(UserError, match="has in no layer that can be packed"):
                folder.check_complete()
            folder.names(f"model.layers.{layer}.{name}", FUSED)
    folder.check_complete()
    assert folder.head() == "lm_head"


def test_a_folder_travels_to_another_process(made: Callable[..., tuple[Path, Path]]) -> None:
    folder = PackedFolder(made()[1])
    other = pickle.loads(pickle.dumps(folder))
    assert other.entries == folder.entries and other.reader.names == folder.reader.names


def test_what_vllm_cannot_run_is_refused_with_the_folder_and_the_mend(
    made: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    packed = made()[1]
    with pytest.raises(UserError, match=r"no packed.json: copy or fetch"):
        PackedFolder(tmp_path)
    newer = changed(packed, tmp_path / "newer", lambda header: header.update(version=5))
    with pytest.raises(UserError, match=r"newer/packed.json is of version 5.*pack"):
        PackedFolder(newer)
    lacking = changed(packed, tmp_path / "lacking", lambda h: h["linears"].pop("model.layers.0.self_attn.k_proj"))
    with pytest.raises(UserError, match=r"lacking does not pack model.layers.0.self_attn.k_proj: pack"):
        PackedFolder(lacking).names("model.layers.0.self_attn.qkv_proj", FUSED)
    with pytest.raises(UserError, match=r"q_proj of 64 rows and 64 columns, where vLLM needs 32 and 64: give"):
        PackedFolder(packed).entry("model.layers.0.self_attn.q_proj", 32, 64)
