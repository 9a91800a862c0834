"""Quantised forwards, features, own rows and moving masks under FSDP2: two processes give what one gives."""

import os
import subprocess
import sys

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from conftest import build_llama
from sparsedraft import packing
from sparsedraft.decoder import decoder_layers, decoder_linears
from sparsedraft.finetune import on_policy, quantize
from sparsedraft.finetune.objective import Objective
from sparsedraft.finetune.reselect import reselect
from sparsedraft.pattern import Pattern
from test_finetune import samples, sparse


def train(shard: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(the losses of three steps, the weights after them); the mask moves in the second."""
    model = build_llama(layers=2)
    keep = sparse(model)
    quantize.install(model, "int8")
    linears = decoder_linears(model)
    if shard:
        for layer in decoder_layers(model):
            fully_shard(layer)
        fully_shard(model)
        for name, mask in keep.items():
            like = linears[name].weight
            keep[name] = distribute_tensor(mask, like.device_mesh, like.placements)
    objective = Objective("kl", build_llama(1), 0.2, build_llama(layers=2), 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    given, seen = [packing.pack(samples(3, seed)) for seed in range(2)], []
    for step in range(1, 4):
        rows = on_policy.rewrite(model, given, share=0.5, seed=0, step=step, eos_ids=frozenset({2}), vocabulary=320)
        model.train()
        for row in rows:
            loss, _ = objective(model, row)
            loss.backward()
            seen.append(float(loss.detach()))
        if step == 2:
            seen.append(reselect(model, keep, dict.fromkeys(keep, Pattern()), optimizer, 0.1))
        for name, linear in linears.items():
            linear.weight.grad.masked_fill_(~keep[name], 0)
        optimizer.step()
        optimizer.zero_grad()
    named = {name: p.detach() for name, p in model.named_parameters()}
    return seen, {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in named.items()}


def test_two_processes_give_what_one_gives() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and done.stdout.count("equal") == 2, done.stderr[-3000:]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    (alone, weights), (sharded, theirs) = train(False), train(True)
    assert alone[4] == sharded[4] > 500, "weights were swapped"
    torch.testing.assert_close(torch.tensor(sharded), torch.tensor(alone), rtol=1e-4, atol=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=1e-4)
        assert torch.equal(theirs[name] == 0, weight == 0), name
    print("equal")
    torch.distributed.destroy_process_group()
