"""Batched generation with refill writes what one row at a time writes."""

import pytest
import torch

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers import padded
from sparsedraft.writers.transformers.completions import complete_all

GREEDY = Sampling()


def requests(count: int, new: int = 16) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        n = int(torch.randint(1, 25, (1,), generator=generator))
        ids = torch.randint(3, 320, (n,), generator=generator).tolist()
        found.append(Request(str(i), ids, 1 + (i * 5) % new, seed=i))
    return found


def run(model, asked, batch_size: int, sampling: Sampling = GREEDY, **options):
    options = {"eos_ids": frozenset(range(3, 40)), **options}
    made = list(complete_all(model, asked, batch_size=batch_size, sampling=sampling, **options))
    assert sorted(o.id for o in made) == sorted(r.id for r in asked)
    return {o.id: o for o in made}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_rows_are_what_transformers_writes_alone(tiny_llama, batch_size: int) -> None:
    model, asked = tiny_llama(), requests(20)
    made = run(model, asked, batch_size)
    for request in asked:
        alone = model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=request.max_new_tokens, do_sample=False,
            eos_token_id=list(range(3, 40)), pad_token_id=0,
        )[0, len(request.prompt_ids) :].tolist()  # fmt: skip
        assert made[request.id].token_ids == alone
        assert made[request.id].finish_reason == ("eos" if alone[-1] in range(3, 40) else "length")


def test_finished_rows_are_refilled_while_others_go_on(tiny_llama, monkeypatch) -> None:
    joins = []
    original = padded._Batch._join

    def counted(self, cache, mask):
        joins.append(len(self.rows))
        original(self, cache, mask)

    monkeypatch.setattr(padded._Batch, "_join", counted)
    model = tiny_llama()
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    run(model, requests(24), 6, eos_ids=frozenset())
    assert sum(before > 0 for before in joins) >= 3, "new rows join rows that are under way"
    assert len(passes) < sum(r.max_new_tokens for r in requests(24)) / 2


def test_a_sampled_row_does_not_depend_on_its_neighbours(tiny_llama) -> None:
    model, asked, sampling = tiny_llama(), requests(12), Sampling(0.8, top_k=40, top_p=0.95)
    together, alone = run(model, asked, 5, sampling), run(model, asked, 1, sampling)
    assert {i: o.token_ids for i, o in together.items()} == {i: o.token_ids for i, o in alone.items()}
    other = run(model, [Request(r.id, r.prompt_ids, r.max_new_tokens, r.seed + 1) for r in asked], 5, sampling)
    assert any(other[i].token_ids != o.token_ids for i, o in together.items())


def test_log_probabilities_are_the_models_own(tiny_llama) -> None:
    model, asked = tiny_llama(), requests(6)
    made = run(model, asked, 4, Sampling(0.7), top_k_logprobs=5)
    for request in asked:
        output = made[request.id]
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt_ids, *output.token_ids]])).logits[0]
        expected = logits.log_softmax(-1)[len(request.prompt_ids) - 1 : -1].topk(5)
        assert output.topk_ids == expected.indices.tolist()
        torch.testing.assert_close(torch.tensor(output.topk_logprobs), expected.values, rtol=1e-3, atol=1e-4)
        best = logits[len(request.prompt_ids) - 1 : -1].topk(2).values
        assert output.min_gap == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-4)


def test_too_long_for_the_context(tiny_llama) -> None:
    with pytest.raises(UserError, match="prompt long has 500 tokens, which with 20 new ones exceed the context of 512"):
        run(tiny_llama(), [Request("long", [5] * 500, 20)], 4)


def test_nan_names_the_prompt(tiny_llama) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    with pytest.raises(FloatingPointError, match="prompt bad"):
        run(model, [Request("bad", [7], 3)], 2)
