"""From logits to distributions: the warpers by hand, and as transformers has them."""

import pytest
import torch
import transformers as hf

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, draw, penalised, probabilities
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.transformers.backend import TransformersBackend
from tiny import build_llama
from toys import reference

WARPERS = [
    Sampling(1.0),
    Sampling(0.4),
    Sampling(1.7, top_k=7),
    Sampling(0.8, top_p=0.7),
    Sampling(1.0, min_p=0.1),
    Sampling(1.0, repetition_penalty=1.8),
    Sampling(1.0, repetition_penalty=0.6),
    Sampling(0.9, 20, 0.9, 0.05, 1.2),
    Sampling(1.4, 5, 0.5, 0.3, 0.9),
    Sampling(0.0, repetition_penalty=1.5),
]


def test_warpers_by_hand() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert probabilities(logits, Sampling(0.0)).tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(probabilities(logits, Sampling(1.0)), logits.exp())
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_k=2)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_p=0.65)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_p=1e-6)), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, min_p=0.7)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    assert probabilities(logits, Sampling(1.0, min_p=1)).tolist() == [1, 0, 0, 0]
    squared = logits.exp() ** 2
    torch.testing.assert_close(probabilities(logits, Sampling(0.5)), squared / squared.sum())


def test_repetition_penalty_by_hand() -> None:
    """Row i is what follows the context and the first i drafts: positive logits divided, negative ones multiplied."""
    logits = torch.tensor([[2.0, -2.0, 4.0, -4.0]]).repeat(3, 1)
    found = penalised(logits, Sampling(repetition_penalty=2.0), [0], [3, 2])
    assert found.tolist() == [[1, -2, 4, -4], [1, -2, 4, -8], [1, -2, 2, -8]]
    assert penalised(logits, Sampling(), [0], [3, 2]) is logits
    outside = torch.tensor([[-torch.inf, 1.0]])  # a token that a vocabulary map leaves out stays out
    assert penalised(outside, Sampling(repetition_penalty=2.0), [0, 1]).tolist() == [[-torch.inf, 0.5]]


@pytest.mark.parametrize("sampling", WARPERS, ids=str)
def test_all_warpers_are_transformers_own(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        logits = torch.randn(60, generator=generator) * (0.5 + case % 5)
        context = torch.randint(0, 60, (1 + case % 9,), generator=generator).tolist()
        mine = probabilities(penalised(logits[None], sampling, context), sampling)[0]
        theirs = reference(logits, sampling, context)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
        assert torch.equal(mine > 0, theirs > 0)


def test_min_p_is_transformers_own() -> None:
    generator = torch.Generator().manual_seed(1)
    for min_p in (0.001, 0.05, 0.3, 0.99, 1.0):
        logits = torch.randn(20, 100, generator=generator) * 3
        theirs = hf.MinPLogitsWarper(min_p)(torch.zeros(20, 1, dtype=torch.long), logits).softmax(-1)
        torch.testing.assert_close(probabilities(logits, Sampling(1.0, min_p=min_p)), theirs)


def test_precision() -> None:
    """Half precision is lifted to float32; float64 stays."""
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampling = Sampling(0.7, 5, 0.9, 0.01, 1.3)
    for given, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        warped = probabilities(penalised(logits.to(given), sampling, [1, 2]), sampling)
        assert warped.dtype == wanted and float((warped.sum(-1) - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    logits = torch.tensor([3.0, 50.0, -20.0, -torch.inf])
    assert probabilities(logits, Sampling(temperature)).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("penalty", [1.3, 3.0, 0.7])
def test_greedy_with_a_penalty_is_transformers_generate(penalty: float) -> None:
    model = build_llama()
    sampling = Sampling(repetition_penalty=penalty)
    changed = 0
    for seed in range(3):
        prompt = torch.randint(3, 320, (6 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()

        def theirs(prompt: list[int] = prompt, **options: float) -> list[int]:
            ids = model.generate(
                torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None, **options
            )
            return ids[0, len(prompt) :].tolist()

        mine = generate(Decoder(TransformersBackend(model), None, Constant(0), sampling), prompt, 30)
        assert mine.tokens == theirs(repetition_penalty=penalty)
        changed += mine.tokens != theirs()
    assert changed, "the penalty makes a difference"


def test_dice_follow_from_their_seed() -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    a, b, c = Dice(3), Dice(3), Dice(4)
    first, second, third = ([dice.draw(p) for _ in range(50)] for dice in (a, b, c))
    assert first == second != third


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1},
        {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": float("nan")}, {"min_p": -0.1}, {"min_p": 1.1},
        {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0}, {"repetition_penalty": float("inf")},
        {"repetition_penalty": float("nan")},
    ],
)  # fmt: skip
def test_impossible_sampling(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="is not possible"):
        Sampling(**options)  # type: ignore[arg-type]


def test_a_draw_is_by_the_sums_and_never_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(p, generator) for _ in range(4000)]
    assert set(drawn) == {1, 3} and abs(drawn.count(1) - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5  # four deviations
    for place, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.9999, 3), (1.0, 3)):  # 1.0: as rounding may make of it
        monkeypatch.setattr(torch, "rand", lambda *_, place=place, **__: torch.tensor(place, dtype=torch.float64))
        assert draw(p, generator) == token


def test_the_likeliest_stays_of_a_share_that_float32_has_as_nothing() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2]]).log()
    assert probabilities(logits, Sampling(1.0, top_p=1e-50)).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("value", [float("nan"), 0.0, float("inf")])
def test_what_does_not_add_up_is_not_drawn_from(value: float) -> None:
    with pytest.raises(FloatingPointError, match="does not add up"):
        Dice(0).draw(torch.full((5,), value))
