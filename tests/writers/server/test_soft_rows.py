"""Rows without log-probabilities among rows that have them: left out of the divergence exactly, and counted."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.stages.finetune import losses
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.passes import add_gradients, validate
from sparsedraft.text import bins, dataset
from sparsedraft.text.bins import fill
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from stages import distill, finetune

K = 5


def sample(seed: int, soft: bool) -> Sample:
    """A random one; with `soft` K random tokens of probability 0.9 together at each place."""
    rng = np.random.default_rng(seed)
    prompt, answer = (rng.integers(3, 320, rng.integers(2, 9)).tolist() for _ in "ab")
    ids = np.stack([rng.permutation(320)[:K] for _ in answer]).astype(np.int32)
    logprobs = np.log(0.9 * rng.dirichlet(np.ones(K), len(answer))).astype(np.float32)
    empty = np.empty((len(answer), 0))
    return Sample(str(seed), prompt, answer, ids if soft else empty, logprobs if soft else empty)


def expected(model, samples: list[Sample], name: str, w: float) -> torch.Tensor:
    """Each sample read alone: the mean divergence over all places with a distribution, the mean NLL over all."""
    logits = [answer_logits(model, fill([s])) for s in samples]
    pairs = zip(logits, samples, strict=True)
    known = [(x, torch.tensor(s.topk_ids), torch.tensor(s.topk_logprobs)) for x, s in pairs if s.soft]
    q, ids, logprobs = (torch.cat(part) for part in zip(*known, strict=True))
    divergence = losses.DIVERGENCES[name](*losses.bucketed(ids.long(), logprobs, q))
    nll = losses.nll(torch.cat(logits), torch.tensor([t for s in samples for t in s.answer_ids]))
    return (1 - w) * divergence + w * nll


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@pytest.mark.parametrize("w", [0.0, 0.3])
def test_a_mixed_step_is_the_mean_over_what_is_known(name: str, w: float, tiny_llama) -> None:
    model = tiny_llama(initializer_range=0.05)
    parts = [[sample(1, True), sample(2, False), sample(3, True)], [sample(4, False)], [sample(5, True)]]
    rows, objective = [fill(part) for part in parts], Objective(name, nll_weight=w)
    wanted = expected(model, [s for part in parts for s in part], name, w)
    wanted.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.train = lambda mode=True: model  # dropout there is none
    loss = add_gradients(model, objective, rows, Accelerator(cpu=True))
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for found, right in zip((p.grad for p in model.parameters()), gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-6)
    assert validate(model, objective, rows)["val_loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_step_without_any_has_the_nll_alone(tiny_llama) -> None:
    model, part = tiny_llama(), [sample(1, False), sample(2, False)]
    plain = losses.nll(answer_logits(model, fill(part)), fill(part).tokens)
    mixed = add_gradients(model, Objective("kl", nll_weight=0.3), [fill(part)], Accelerator(cpu=True))
    assert mixed == pytest.approx(0.3 * plain.item(), rel=1e-5)
    with pytest.raises(UserError, match="no row of the validation data has log-probabilities"):
        validate(model, Objective("kl", nll_weight=0.3), [fill(part)])


def test_what_is_known_keeps_its_numbers_beside_what_is_not() -> None:
    first, second = sample(1, True), sample(2, False)
    row = fill([second, first])
    assert row.soft.tolist() == [False] * len(second.answer_ids) + [True] * len(first.answer_ids)
    assert torch.equal(row.topk_ids[row.soft], torch.tensor(first.topk_ids).long())
    assert torch.equal(row.topk_logprobs[row.soft], torch.tensor(first.topk_logprobs))
    assert not bins.fill([second]).soft.any() and bins.fill([first]).soft.all()


def edited(data: Path, out: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A copy of the data folder with its rows changed, or left out where `change` gives None."""
    shutil.copytree(data, out)
    (file,) = out.glob("data-*.parquet")
    table = parquet.read_table(file)
    rows = [row for row in map(change, table.to_pylist()) if row is not None]
    parquet.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**result, "rows": len(rows)}))
    return out


def test_finetuning_is_that_on_the_rows_that_have_them(tiny_checkpoint, tiny_llama, tokenizer, tmp_path) -> None:
    distill(str(tiny_checkpoint), "demo:train", tmp_path / "data", limit=16, max_new_tokens=8, top_k_logprobs=4)
    checkpoint.save(tiny_llama(3, layers=2), tokenizer, tmp_path / "drafter")
    names = sorted({row["prompt_id"] for row in dataset.read(tmp_path / "data")},
                   key=lambda name: hashlib.sha256(name.encode()).hexdigest())  # fmt: skip
    lacking = set(names[6:9])  # 4 are held out

    def without(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "topk_ids": [], "topk_logprobs": []} if row["prompt_id"] in lacking else row

    edited(tmp_path / "data", tmp_path / "mixed", without)
    edited(tmp_path / "data", tmp_path / "fewer", lambda row: None if row["prompt_id"] in lacking else row)

    def tuned(data: str, **options: object) -> dict[str, Any]:
        settings = Settings(loss="kl", sequence_length=256, tokens=1500, **options)
        return finetune(str(tmp_path / "drafter"), str(tmp_path / data), tmp_path / f"{data}{len(options)}",
                        settings=settings, validation_prompts=4)  # fmt: skip

    mixed, fewer = tuned("mixed"), tuned("fewer")
    assert mixed.pop("rows_without_logprobs") == 3 and mixed == fewer
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("mixed0", "fewer0"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert tuned("mixed", nll_weight=0.5)["rows_without_logprobs"] == 3
    edited(tmp_path / "data", tmp_path / "none", lambda row: {**row, "topk_ids": [], "topk_logprobs": []})
    with pytest.raises(UserError, match="no row of the training data has log-probabilities"):
        tuned("none")
