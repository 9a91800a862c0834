"""AdamW with moments only where weights live."""

import math
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


def _is_native(*tensors: Tensor) -> bool:
    """Whether the extension can read and write these."""
    known = (torch.float32, torch.bool)
    return is_built() and all(t.device.type == "cpu" and t.dtype in known and t.is_contiguous() for t in tensors)


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
        self.scale = 1.0  # of the next step's gradients

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
                local(parameter.grad).mul_(keep)

    @property
    def can_clip(self) -> bool:
        """Whether `clip` works here: where the extension steps."""
        masked = [(p, p.grad, keep) for p, keep in self.keep.items() if p.grad is not None]
        return bool(masked) and all(local(of[0]) is of[0] and _is_native(*of) for of in masked)

    @torch.no_grad()
    def clip(self, largest: float) -> float:
        """The norm of the gradient of what is trained; the next step scales it down to `largest`, where it is more.

        It takes a pass over the gradients less than zeroing some, and two less than scaling them.
        """
        squares = 0.0
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            gradient, keep = parameter.grad, self.keep.get(parameter)
            if keep is None:
                squares += float(gradient.norm()) ** 2
            else:
                squares += extension().sum_of_squares(gradient.data_ptr(), keep.data_ptr(), keep.numel(), self._pool)
        norm = math.sqrt(squares)
        self.scale = min(1.0, largest / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ does
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One AdamW step of every parameter that has a gradient."""
        scale, self.scale = self.scale, 1.0
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            plain = [p for p in parameters if p not in self.keep]
            self._update(group, plain, [local(p) for p in plain], [local(p.grad) for p in plain], scale)
            for parameter in (p for p in parameters if p in self.keep):  # one at a time: the vectors are copies
                weight, gradient, keep = local(parameter), local(parameter.grad), self.keep[parameter]
                if _is_native(weight, gradient, keep):
                    self._update_natively(group, parameter, (weight, gradient), scale)
                    continue
                where, flat = places(keep), weight.view(-1)
                survivors = flat.index_select(0, where)
                self._update(group, [parameter], [survivors], [gradient.flatten().index_select(0, where)])
                flat.scatter_(0, where, survivors)

    @cached_property
    def _pool(self) -> Any:
        """The threads of the extension."""
        return pool(torch.get_num_threads())

    def _update_natively(
        self, group: dict[str, Any], parameter: Tensor, of_it: tuple[Tensor, Tensor], scale: float
    ) -> None:
        """The same by the extension, in one pass and without vectors; `of_it` are its weight and gradient here."""
        (weight, gradient), keep = of_it, self.keep[parameter]
        if not self.state[parameter]:
            count = int(keep.sum())
            self.state[parameter] = self._begun(torch.empty(count))
        state = self.state[parameter]
        state["step"] += 1
        if state["exp_avg"].numel():
            extension().step_kept(
                weight.data_ptr(), gradient.data_ptr(), keep.data_ptr(), keep.numel(), state["exp_avg"].data_ptr(),
                state["exp_avg_sq"].data_ptr(), group["lr"], *group["betas"], group["eps"], group["weight_decay"],
                int(state["step"]), scale, self._pool,
            )  # fmt: skip
            increment_version(weight)

    @staticmethod
    def _begun(weight: Tensor) -> dict[str, Tensor]:
        """The state before the first step of weights like these."""
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=weight.device), **moments}

    def _update(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        weights: list[Tensor],
        gradients: list[Tensor],
        scale: float = 1.0,
    ) -> None:
        """Torch's fused AdamW on `weights` in place, with the moments of `parameters` and `gradients` times `scale`."""
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
            grad_scale=torch.tensor(1 / scale) if scale < 1 else None,
        )
        for weight in weights:  # which torch's fused kernels do not count as a write
            increment_version(weight)
