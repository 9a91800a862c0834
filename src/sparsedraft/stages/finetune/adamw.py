"""AdamW with moments only where weights live."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from sparsedraft.native.extension import extension, is_built, pool
from sparsedraft.stages.finetune.sharding import local


def places(keep: Tensor) -> Tensor:
    """The positions (int64, in row-major order) where `keep` is True."""
    if keep.device.type == "cpu":  # numpy counts and writes in a twentieth of torch's time
        return torch.from_numpy(np.flatnonzero(keep.numpy()))
    return keep.flatten().nonzero().squeeze(1)


def pack(dense: Tensor, keep: Tensor | None) -> Tensor:
    """The entries of `dense` where `keep` is True, in row-major order, as a vector; without a mask `dense` itself."""
    return dense if keep is None else dense.flatten().index_select(0, places(keep))


def unpack(packed: Tensor, keep: Tensor | None) -> Tensor:
    """The inverse of `pack`, 0 where `keep` is False."""
    if keep is None:
        return packed
    dense = torch.zeros(keep.numel(), dtype=packed.dtype, device=packed.device)
    return dense.scatter_(0, places(keep), packed).view(keep.shape)


class MaskedAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW on the surviving weights of masked parameters; it stores nothing for pruned weights.

    `hold` gives a parameter its mask, which lives nowhere else in training. On a CPU the native extension steps through
    a masked parameter's weights, gradients and mask once, and updates what the mask keeps. Without it, and elsewhere,
    each step gathers weights and gradients into vectors, runs torch's fused AdamW on them, and scatters the weights
    back. The arithmetic is torch's own, and a pruned weight is never written. Sharded parameters are updated shard by
    shard.

    Memory of a masked parameter: 8 bytes of moments a surviving weight and 1 byte of mask a weight; gathering takes 16
    bytes a surviving weight of one parameter at a time during the step.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})
        self.keep: dict[Tensor, Tensor] = {}  # bool, by parameter, cut as the parameter is

    @torch.no_grad()
    def hold(self, parameter: Tensor, keep: Tensor) -> None:
        """From now on only the weights of `parameter` where `keep` (bool, its local shape) is True are trained.

        All other weights become 0 and lose their moments. A weight that is new in the mask starts with moments of 0.
        """
        before = self.keep.get(parameter)
        for name in ("exp_avg", "exp_avg_sq"):
            if moments := self.state.get(parameter):
                moments[name] = pack(unpack(moments[name], before), keep)
        self.keep[parameter] = keep
        local(parameter).masked_fill_(~keep, 0)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights, so that the norm of the gradient is that of what is trained."""
        for parameter, keep in self.keep.items():
            if parameter.grad is not None:
                gradient = local(parameter.grad)
                if self._is_native(gradient, keep):
                    where = gradient.data_ptr(), keep.data_ptr()
                    extension().mask_gradients(*where, keep.numel(), self._pool)
                else:
                    gradient.mul_(keep)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One AdamW step of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            plain = [p for p in parameters if p not in self.keep]
            self._update(group, plain, [local(p) for p in plain], [local(p.grad) for p in plain])
            for parameter in (p for p in parameters if p in self.keep):  # one at a time: the vectors are copies
                weight, gradient, keep = local(parameter), local(parameter.grad), self.keep[parameter]
                if self._is_native(weight, gradient, keep):
                    self._update_natively(group, parameter, weight, gradient)
                    continue
                where, flat = places(keep), weight.view(-1)
                survivors = flat.index_select(0, where)
                self._update(group, [parameter], [survivors], [gradient.flatten().index_select(0, where)])
                flat.scatter_(0, where, survivors)

    @cached_property
    def _pool(self) -> Any:
        """The threads of the extension."""
        return pool(torch.get_num_threads())

    @staticmethod
    def _is_native(*tensors: Tensor) -> bool:
        """Whether the extension can read and write these."""
        plain = all(
            t.device.type == "cpu" and t.dtype in (torch.float32, torch.bool) and t.is_contiguous() for t in tensors
        )
        return plain and is_built()

    def _update_natively(self, group: dict[str, Any], parameter: Tensor, weight: Tensor, gradient: Tensor) -> None:
        """The same by the extension, in one pass and without vectors."""
        keep = self.keep[parameter]
        if not self.state[parameter]:
            count = int(keep.sum())
            self.state[parameter] = self._begun(torch.empty(count))
        state = self.state[parameter]
        state["step"] += 1
        if state["exp_avg"].numel():
            extension().step_kept(
                weight.data_ptr(), gradient.data_ptr(), keep.data_ptr(), keep.numel(), state["exp_avg"].data_ptr(),
                state["exp_avg_sq"].data_ptr(), group["lr"], *group["betas"], group["eps"], group["weight_decay"],
                int(state["step"]), self._pool,
            )  # fmt: skip
            increment_version(weight)

    @staticmethod
    def _begun(weight: Tensor) -> dict[str, Tensor]:
        """The state before the first step of weights like these."""
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=weight.device), **moments}

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], weights: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """Torch's fused AdamW on `weights` in place, with the moments of `parameters`."""
        for parameter, weight in zip(parameters, weights, strict=True):
            if not self.state[parameter]:
                self.state[parameter] = self._begun(weight)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            weights,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for weight in weights:  # which torch's fused kernels do not count as a write
            increment_version(weight)
