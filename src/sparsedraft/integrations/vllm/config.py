"""The quantisation method "sparsedraft" of vLLM: what `quant_method` in the config.json of a packed folder asks for."""

from pathlib import Path
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform

from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm import sampling
from sparsedraft.integrations.vllm.folder import PackedFolder
from sparsedraft.integrations.vllm.layers import PackedEmbeddingMethod, PackedHeadMethod, PackedLinearMethod
from sparsedraft.native import extension as native
from sparsedraft.native.packed_folder import HEAD_BASE, HEAD_IDS
from sparsedraft.native.packed_format import PARTS

METHOD = "sparsedraft"
_registered: list[type] = []


class SparsedraftConfig(QuantizationConfig):
    """How the layers of one packed model are run. Raises UserError, one sentence, for a folder that cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: PackedFolder | None = None

    def get_name(self) -> Any:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SparsedraftConfig":
        return cls()

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """vLLM calls this with the folder or the hub id of the model, before it builds it."""
        folder = local_folder(model_name, revision)
        if not current_platform.is_cpu():
            raise UserError(
                f"packed folder {folder} runs on CPUs only in vLLM: serve the checkpoint that it was packed from, or "
                "let sparsedraft.integrations.vllm.Proposer draft with it on the CPU."
            )
        if not native.is_built():
            raise UserError(
                f"packed folder {folder} needs the native runtime, which was not built: install a C++20 compiler and "
                "sparsedraft again."
            )
        self.folder = PackedFolder(folder)

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """What is packed is read from the folder, by the layers themselves: vLLM's own loading leaves it out."""
        packed = {f".{part}": None for part in PARTS} | dict.fromkeys((HEAD_IDS, HEAD_BASE))
        return super().get_checkpoint_weight_mapper() | WeightsMapper(orig_to_new_suffix=packed)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        sampling.mend()  # here, because this is called in the process that samples, once vLLM is set up there
        folder = self.folder
        if folder is None:
            raise UserError(f"a packed model of {prefix} has no folder: give vLLM its folder or its hub id.")
        if (processes := get_tensor_model_parallel_world_size()) > 1:
            raise UserError(
                f"packed folder {folder.folder} runs in one process, and vLLM would share it among {processes}: give "
                "--tensor-parallel-size 1."
            )
        if isinstance(layer, ParallelLMHead):
            name = folder.head()
            return None if name is None else PackedHeadMethod(folder, name)
        if isinstance(layer, VocabParallelEmbedding):
            name = folder.embedding()
            return None if name is None else PackedEmbeddingMethod(folder, name)
        if isinstance(layer, LinearBase):
            names = folder.names(prefix, self.packed_modules_mapping)
            return PackedLinearMethod(folder, names) if names else UnquantizedLinearMethod()
        return None


def local_folder(model: str, revision: str | None) -> Path:
    """Where the packed model lies: a folder as it is, or what was fetched of a hub id; UserError where it cannot be."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise UserError(f"packed model {model} cannot be fetched ({error}): give a folder.") from None


def register() -> None:
    """Register the method; a second call changes nothing."""
    if not _registered:
        _registered.append(register_quantization_config(METHOD)(SparsedraftConfig))
