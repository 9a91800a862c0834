"""Several processes that work as one, through accelerate: which one leads, how they agree, and which one writes.

`accelerate launch` or `torchrun` starts them; without either there is one process, and nothing here costs anything. The
main process owns the artifact folder (see `artifact.make`). The others work beside it in the same folder, so on several
machines the folder must lie on a file system that all of them see.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    patch_environment,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the others wait while the main process hashes inputs, loads and writes
PRECISION = {"float32": "no", "bfloat16": "bf16"}


def arithmetic(dtype: str, device: str) -> str:
    """`dtype`, or for "auto" bfloat16 where the CPU or GPU `device` multiplies it in hardware, else float32."""
    if dtype != "auto":
        return dtype
    match torch.device(device).type:
        case "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        case _:
            fast = False
    return "bfloat16" if fast else "float32"


@contextmanager
def open_accelerator(device: str, dtype: str) -> Iterator[Accelerator]:
    """accelerate's view of this process and the others of its launch, training in `dtype` with float32 weights.

    A process alone works on `device`; one of several works on the device that accelerate assigns. Raises UserError for
    a dtype that cannot be trained in, on this device or at all.
    """
    if dtype not in PRECISION:
        raise UserError(
            f"--dtype {dtype} is no arithmetic to train in: give float32, or bfloat16, which has its range without "
            "loss scaling."
        )
    alone = "LOCAL_RANK" not in os.environ
    AcceleratorState._reset_state(reset_partial_state=alone)  # an earlier training in this process may have set it
    plugin = _sharding(dtype) if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else None
    with patch_environment(**({"ACCELERATE_TORCH_DEVICE": device} if alone else {})):
        try:
            accelerator = Accelerator(
                cpu=torch.device(device).type == "cpu",
                mixed_precision=PRECISION[dtype],
                fsdp_plugin=plugin,
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # else gradients are in memory twice
                    InitProcessGroupKwargs(timeout=PATIENCE),
                ],
            )
        except ValueError as error:
            raise UserError(f"--dtype {dtype} cannot be used on {device} ({error}): give float32.") from None
    if plugin and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate 1.15 takes FSDP on accelerators only (the list in AcceleratorState.__init__ lacks MULTI_CPU) and
        # would silently use DDP here; everything that its FSDP calls works on CPUs with gloo
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    try:
        yield accelerator
        accelerator.end_training()
    finally:  # accelerate keeps its settings for the life of the process; the next training may have others
        AcceleratorState._reset_state(reset_partial_state=alone)


def _sharding(dtype: str) -> FullyShardedDataParallelPlugin:
    """FSDP2 as `accelerate launch --use_fsdp` asks for it; each decoder layer is a unit unless it says otherwise."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("--fsdp_version 1 of accelerate launch is not supported: give --fsdp_version 2.")
    unset = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper() == "NO_WRAP"
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP" if unset else None,
        mixed_precision_policy=mixed if dtype == "bfloat16" else None,
        cpu_ram_efficient_loading=False,  # else only the first process sees the zeros that are the mask
    )


def in_turn(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in the main process first and then in the others; if one fails, all fail.

    So no process waits for one that has given up, and the user reads one sentence. Raises what `work` raised; in the
    other processes that is a UserError or RuntimeError with the same text.
    """
    result: Any = None
    failure: Exception | None = None
    for turn in (accelerator.is_main_process, not accelerator.is_main_process):
        try:
            result = work() if turn else result
        except Exception as error:
            failure = error
        report = [] if failure is None else [(isinstance(failure, UserError), str(failure))]
        first = next(iter(gather_object(report)), None)  # of all processes
        if failure is not None:
            raise failure
        if first is not None:
            mendable, text = first
            raise UserError(text) if mendable else RuntimeError(f"another process failed: {text}")
    return result


def share_of(rows: Sequence[T], accelerator: Accelerator) -> Iterator[tuple[T, bool]]:
    """This process's share of `rows`, each with whether it counts.

    Every process gets equally many, because they meet in each forward and backward pass; where the rows do not divide
    evenly, the last processes get one more that does not count.
    """
    for start in range(0, len(rows), accelerator.num_processes):
        index = start + accelerator.process_index
        yield (rows[index], True) if index < len(rows) else (rows[start], False)


def sum_over_processes(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum").tolist()


def make(
    accelerator: Accelerator,
    out: Path,
    command: str,
    inputs: Mapping[str, object],
    build: Callable[[Path], dict[str, Any]],
    *,
    seed: int = 0,
    overwrite: bool = False,
    reads: Sequence[str | Path | None] = (),
) -> dict[str, Any]:
    """`artifact.make` in the main process, while the others run `build` beside it; its result, {} in the others.

    Only the main process locks, resumes, renames and writes the provenance. Where it has nothing to build, or refuses
    to build, the others return at once.
    """
    if not accelerator.is_main_process:
        work = broadcast_object_list([None])[0]
        return build(Path(work)) if work is not None else {}
    started = False

    def leading(work: Path) -> dict[str, Any]:
        nonlocal started
        started = True
        broadcast_object_list([str(work)])
        return build(work)

    try:
        return artifact.make(out, command, inputs, leading, seed=seed, overwrite=overwrite, reads=reads)
    finally:
        if not started:
            broadcast_object_list([None])
