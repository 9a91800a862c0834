"""What training minimises: losses against float64 sums, bounds, mixtures, features, rows of the drafter's own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedraft.base.errors import UserError
from sparsedraft.stages.finetune import features, losses, on_policy
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.text import bins
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from training import samples

EOS = frozenset({2})


def logits(n: int, width: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def topk(p_logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, log-probabilities), as `distill` stores them but for their 16 bits."""
    logprobs, ids = p_logits.log_softmax(-1).topk(k)
    return ids, logprobs


# ---- the divergences


def test_divergences_against_float64_sums() -> None:
    p_logits, q_logits = logits(5, 11), logits(5, 11, 1)
    p, q = p_logits.double().softmax(-1), q_logits.double().softmax(-1)
    for name, expected in (
        ("kl", (p * (p / q).log()).sum(-1).mean()),
        ("reverse-kl", (q * (q / p).log()).sum(-1).mean()),
        ("tvd", 1 - torch.minimum(p, q).sum(-1).mean()),
    ):
        divergence = losses.DIVERGENCES[name]
        torch.testing.assert_close(
            divergence(*losses.whole(p_logits, q_logits)).double(), expected, rtol=1e-5, atol=1e-6
        )
        assert float(divergence(*losses.whole(p_logits, p_logits))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", losses.DIVERGENCES)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.3, 1.0, 2.0]))
@settings(max_examples=25, deadline=None)
def test_a_bucket_bounds_from_below_and_the_bound_rises_with_k(name: str, seed: int, scale: float) -> None:
    p_logits, q_logits = logits(4, 11, seed, scale), logits(4, 11, seed + 1000, scale)
    divergence = losses.DIVERGENCES[name]
    exact = float(divergence(*losses.whole(p_logits, q_logits)))
    bounds = [float(divergence(*losses.bucketed(*topk(p_logits, k), q_logits))) for k in (1, 3, 6, 10)]
    slack = 1e-5 + (1e-3 * (1 + exact) if scale > 1 else 0)  # where p's rest is below REST_P
    assert bounds[0] >= -slack and all(low <= high + slack for low, high in pairwise(bounds))
    assert bounds[-1] <= exact + slack
    if scale <= 1:
        assert bounds[-1] == pytest.approx(exact, rel=1e-3, abs=1e-5) and bounds[0] < exact


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_gradients_of_both_forms_agree_once_every_token_is_there(name: str) -> None:
    p_logits, found = logits(4, 11), []
    for form in ("whole", "bucketed"):
        q_logits = logits(4, 11, 1).requires_grad_()
        pair = losses.whole(p_logits, q_logits) if form == "whole" else losses.bucketed(*topk(p_logits, 10), q_logits)
        losses.DIVERGENCES[name](*pair).backward()
        found.append(q_logits.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    assert float(found[0].abs().max()) > 1e-3


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_descent_reaches_the_target(name: str) -> None:
    p_logits, q_logits = logits(3, 8), logits(3, 8, 1).requires_grad_()
    optimizer = torch.optim.Adam([q_logits], lr=0.03)
    for _ in range(900):
        optimizer.zero_grad()
        losses.DIVERGENCES[name](*losses.whole(p_logits, q_logits)).backward()
        optimizer.step()
    assert float(losses.tvd(*losses.whole(p_logits, q_logits.detach()))) < 0.03


@pytest.mark.parametrize("widths", [(14, 11), (11, 14)])
@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_padded_heads_compare_the_rows_that_both_have(name: str, widths: tuple[int, int]) -> None:
    """Rows past the tokenizer's last token are padding: whatever they hold, only the common rows count."""
    p_logits, q_logits = (logits(4, width, seed) for seed, width in enumerate(widths))
    divergence = losses.DIVERGENCES[name]
    expected = divergence(*losses.whole(p_logits[:, :11], q_logits[:, :11]))
    torch.testing.assert_close(divergence(*losses.whole(p_logits, q_logits)), expected)


def test_a_stored_id_beyond_the_head_goes_to_the_bucket() -> None:
    q_logits = logits(1, 6).requires_grad_()
    ids, logprobs = torch.tensor([[1, 9, 4]]), torch.tensor([[0.5, 0.2, 0.1]]).log()
    log_p, log_q = losses.bucketed(ids, logprobs, q_logits)
    torch.testing.assert_close(log_p.exp(), torch.tensor([[0.5, 0, 0.1, 0.4]]), atol=1e-6, rtol=0)
    q = q_logits.softmax(-1)[0]
    wanted = torch.stack([q[1], q.new_zeros(()), q[4], 1 - q[1] - q[4]])
    torch.testing.assert_close(log_q.exp()[0], wanted, atol=1e-6, rtol=0)
    for divergence in losses.DIVERGENCES.values():
        (gradient,) = torch.autograd.grad(divergence(log_p, log_q), q_logits, retain_graph=True)
        assert bool(torch.isfinite(gradient).all())


def test_sixteen_bits_still_sum_to_one() -> None:
    p_logits = logits(64, 50, scale=3.0)
    ids, logprobs = topk(p_logits, 49)
    assert bool((logprobs.half().float().exp().sum(-1) > 1).any()), "rounding alone leaves less than nothing"
    log_p, _ = losses.bucketed(ids, logprobs.half().float(), p_logits)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(64))
    for divergence in losses.DIVERGENCES.values():
        assert 0 <= float(divergence(*losses.bucketed(ids, logprobs.half().float(), p_logits))) < 2e-3


# ---- the objective of a row


def soft(sample: Sample, target, k: int) -> Sample:
    """`sample` with the target's k likeliest tokens."""
    with torch.no_grad():
        ids, logprobs = topk(answer_logits(target, bins.fill([sample])), k)
    return Sample(sample.id, sample.prompt_ids, sample.answer_ids, ids.numpy().astype(np.int32), logprobs.numpy())


@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_the_mixture_is_linear_and_stored_log_probabilities_stand_in_for_a_teacher(name: str, tiny_llama) -> None:
    target, model = tiny_llama(1, initializer_range=0.05), tiny_llama(initializer_range=0.05)  # no token near REST_P
    row = bins.fill([soft(sample, target, 319) for sample in samples(3)])
    distillation, _ = Objective(name, target)(model, row)
    stored, _ = Objective(name)(model, row)
    torch.testing.assert_close(stored, distillation, rtol=1e-3, atol=1e-4)
    plain = losses.nll(answer_logits(model, row), row.tokens)
    for w in (0.0, 0.25, 1.0):
        mixed, _ = Objective(name, target, nll_weight=w)(model, row)
        torch.testing.assert_close(mixed, (1 - w) * distillation + w * plain)


def test_an_own_row_has_no_nll_and_its_divergence_keeps_its_weight(tiny_llama) -> None:
    target, model, several = tiny_llama(1), tiny_llama(), samples(3)
    own, theirs = bins.fill(several, own=True), bins.fill(several)
    alone, _ = Objective("tvd", target)(model, theirs)
    mixed, _ = Objective("tvd", target, nll_weight=0.25)(model, own)
    torch.testing.assert_close(mixed, 0.75 * alone)
    assert own.to(torch.device("cpu")).own, "a move to a device keeps the mark"


def test_without_anything_to_compare_with(tiny_llama) -> None:
    with pytest.raises(UserError, match=r"--loss tvd compares distributions, and no row of this text has"):
        Objective("tvd")(tiny_llama(), bins.fill(samples(2)))


# ---- SquareHead


def test_square_head_is_the_relative_error_of_each_layer() -> None:
    dense = [torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(i)) * 10**i for i in range(3)]
    assert float(features.square_head(dense, dense)) == 0
    torch.testing.assert_close(features.square_head(dense, [0 * d for d in dense]), torch.tensor(1.0))
    torch.testing.assert_close(features.square_head(dense, [1.5 * d for d in dense]), torch.tensor(0.25))
    errors = [((0.3 * (i + 1)) ** 2) for i in range(3)]  # layers weigh the same, whatever their size
    got = features.square_head(dense, [d * (1 + 0.3 * (i + 1)) for i, d in enumerate(dense)])
    torch.testing.assert_close(got, torch.tensor(sum(errors) / 3))


def test_features_are_those_of_every_layer_and_only_in_training(tiny_llama) -> None:
    dense, model, row = tiny_llama(), tiny_llama(), bins.fill(samples(2))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(0.5)
    plain, features_too = Objective(), Objective(feature_teacher=dense, feature_weight=2.0)
    assert torch.equal(features_too(model.eval(), row)[0], plain(model, row)[0])
    model.train()
    with torch.no_grad():
        ours, theirs = (
            m(input_ids=row.ids, position_ids=row.positions, output_hidden_states=True, use_cache=False).hidden_states
            for m in (model, dense)
        )
    expected = sum(float(((a - b) ** 2).mean() / (b**2).mean()) for a, b in zip(ours[1:], theirs[1:], strict=True)) / 4
    loss = features_too(model, row)[0]
    assert float((loss - plain(model, row)[0]).detach()) == pytest.approx(2 * expected, rel=1e-3) and expected > 1e-4
    loss.backward()
    assert all(p.grad is None for p in dense.parameters())


def test_a_model_that_is_both_teachers_runs_once(tiny_llama) -> None:
    both, model, row = tiny_llama(1), tiny_llama().train(), bins.fill(samples(2))
    passes = []
    both.register_forward_hook(lambda *_: passes.append(1))
    shared, _ = Objective("kl", both, feature_teacher=both, feature_weight=1.0)(model, row)
    assert len(passes) == 1
    apart, _ = Objective("kl", both, feature_teacher=tiny_llama(1), feature_weight=1.0)(model, row)
    torch.testing.assert_close(shared, apart)


def test_features_of_another_shape_are_refused(tiny_llama) -> None:
    drafter = tiny_llama().config
    features.check_match(tiny_llama(1).config, drafter, "same")
    for other in (tiny_llama(layers=2), tiny_llama(hidden_size=32)):
        with pytest.raises(
            UserError, match=r"--feature-teacher x has \d layers of hidden size \d+ and the drafter 4 of 64"
        ):
            features.check_match(other.config, drafter, "x")


# ---- rows that the drafter writes


def test_unpack_undoes_pack() -> None:
    several = samples(5)
    back = bins.samples_in(bins.fill(several))
    assert [(s.prompt_ids, s.answer_ids) for s in back] == [(s.prompt_ids, s.answer_ids) for s in several]


def rows(count: int) -> list[bins.Bin]:
    several = samples(3 * count)
    return [bins.fill(several[3 * i : 3 * i + 3]) for i in range(count)]


def rewritten(model, given: list, **options) -> list[bins.Bin]:
    return on_policy.rewrite(
        model, given, **{"share": 1.0, "seed": 0, "step": 1, "eos_ids": EOS, "vocabulary": 320, **options}
    )


def test_own_rows_have_the_prompts_and_at_most_the_answers_length(tiny_llama) -> None:
    model, given = tiny_llama(), rows(4)
    for before, after in zip(given, rewritten(model, given), strict=True):
        assert after.own and not before.own
        for a, b in zip(bins.samples_in(before), bins.samples_in(after), strict=True):
            assert a.prompt_ids == b.prompt_ids and a.answer_ids != b.answer_ids
            stopped = b.answer_ids[-1] == 2 and 2 not in b.answer_ids[:-1]
            assert len(b.answer_ids) == len(a.answer_ids) or (stopped and len(b.answer_ids) < len(a.answer_ids))


def test_own_rows_follow_from_weights_seed_and_step_alone(tiny_llama) -> None:
    model, given = tiny_llama(), rows(4)

    def text(**options) -> list:
        torch.manual_seed(torch.seed() % 1000)  # the global random state has no say
        return [row.ids.tolist() for row in rewritten(model.train(), given, **options)]

    first = text()
    assert not model.training, "dropout is off while it writes"
    assert text() == first and text(step=2) != first and text(seed=1) != first
    assert len({str(ids) for ids in rewritten(model, [given[0], given[0]])}) == 2, "equal rows get draws of their own"


def test_text_is_sampled_from_the_drafter_at_temperature_one(tiny_llama) -> None:
    model, given = tiny_llama(initializer_range=0.1), [bins.fill([Sample("", [5, 6, 7], [8])] * 60)]
    drawn = [s.answer_ids[0] for step in range(20) for s in bins.samples_in(rewritten(model, given, step=step)[0])]
    with torch.no_grad():
        q = model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    top = q.topk(40).indices
    counts = torch.bincount(torch.tensor(drawn), minlength=320)[top].float()
    expected = q[top] * len(drawn)
    z = float(((counts.sum() - expected.sum()) ** 2 / (expected.sum() * (1 - q[top].sum()))) ** 0.5)
    assert z < 4, "the mass of the 40 likeliest tokens"
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert chi < 40 + 5 * 80**0.5


def test_the_share_is_of_rows_and_hashed() -> None:
    picked = [len(on_policy.rows_of_drafter(0.3, 0, step, 10)) for step in range(400)]
    assert abs(sum(picked) / 4000 - 0.3) < 0.03 and len(set(picked)) > 3
    assert on_policy.rows_of_drafter(0.0, 0, 1, 50) == []
    assert on_policy.rows_of_drafter(1.0, 0, 1, 50) == list(range(50))
    some = set(on_policy.rows_of_drafter(0.2, 0, 1, 50))
    assert some <= set(on_policy.rows_of_drafter(0.6, 0, 1, 50)), "the same rows first"


def test_rows_that_are_not_chosen_stay_as_they_are(tiny_llama) -> None:
    given = rows(6)
    step = next(s for s in range(100) if 0 < len(on_policy.rows_of_drafter(0.5, 0, s, 6)) < 6)
    picked = on_policy.rows_of_drafter(0.5, 0, step, 6)
    after = rewritten(tiny_llama(), given, share=0.5, step=step)
    assert [i for i, (a, b) in enumerate(zip(given, after, strict=True)) if a is not b] == picked


def test_a_token_that_the_target_lacks_ends_the_answer(tiny_llama) -> None:
    model, given = tiny_llama(), rows(3)
    free = [s.answer_ids for row in rewritten(model, given) for s in bins.samples_in(row)]
    cut = [s.answer_ids for row in rewritten(model, given, vocabulary=250) for s in bins.samples_in(row)]
    theirs = [s.answer_ids for row in given for s in bins.samples_in(row)]
    assert any(max(ids) >= 250 for ids in free)
    for whole, short, target in zip(free, cut, theirs, strict=True):
        n = next((i for i, token in enumerate(whole) if token >= 250), len(whole))
        assert short == (whole[:n] or target)


def test_a_drafter_of_nan_leaves_the_rows_to_the_loss(tiny_llama) -> None:
    model, given = tiny_llama(), rows(2)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert rewritten(model, given) == given
