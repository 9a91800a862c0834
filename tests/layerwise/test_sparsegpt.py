"""SparseGPT against a naive reference, and against the simpler methods."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsedraft.layerwise import sequential, sparsegpt
from sparsedraft.layerwise.calibration import sequences
from sparsedraft.layerwise.sparsegpt import (
    DAMPING,
    Goal,
    Hessian,
    inverse_factor,
    prune,
    prune_and_round,
    relative_error,
)
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.masks import keep_mask, obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of, int4_codes, least_squares_scale
from sparsedraft.models import checkpoint
from sparsedraft.stages.prune.methods import METHODS, magnitude, wanda
from sparsedraft.stages.prune.refine import refine


def problem(rows: int, columns: int, tokens: int, seed: int = 0) -> tuple[Tensor, Hessian]:
    """A random weight and the Hessian of inputs that are correlated and of unequal size, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    scale = torch.rand(columns, generator=generator) * 3 + 0.1
    x = (torch.randn(tokens, columns, generator=generator) @ mix + 0.3) * scale
    hessian = Hessian(columns)
    for part in x.split(50):
        hessian.add(part)
    hessian.finish()
    return torch.randn(rows, columns, generator=generator), hessian


def double(hessian: Hessian) -> Hessian:
    return Hessian.of(hessian.H.double())


def without_first(inverse: Tensor) -> Tensor:
    """The inverse Hessian of all its columns but the first, by one step of Gaussian elimination."""
    return inverse[1:, 1:] - torch.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]


def naive(
    weight: Tensor, H: Tensor, pattern: Pattern, sparsity: float, block: int, group: int = 0
) -> tuple[Tensor, Tensor]:
    """SparseGPT one column at a time in float64, with the inverse Hessian of the columns to come kept whole.

    With a `group`, each kept weight becomes the nearest code times its group's scale as its column is passed.

    No Cholesky and no lazy updates: after each column, the inverse loses that column by one step of Gaussian
    elimination (OBS, Hassibi et al. 1993), which is what the factor's rows encode.
    """
    W, H = weight.double().clone(), H.double().clone()
    rows, columns = W.shape
    damping = (0.01 if sparsity or not group else 0.1) * H.diagonal().mean()
    importance = (H.diagonal() + damping)[:, None]
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    inverse = torch.linalg.inv(H + damping * torch.eye(columns, dtype=torch.float64))
    diagonals, reduced = [], inverse
    for _ in range(columns):  # the mask needs [H⁻¹]_cc of later columns in the block beforehand
        diagonals.append(float(reduced[0, 0]))
        reduced = without_first(reduced)
    d = torch.tensor(diagonals, dtype=torch.float64)
    keep = torch.ones(rows, columns, dtype=torch.bool)
    scale = torch.zeros(rows, dtype=torch.float64)
    for c in range(columns):
        if pattern.m and c % pattern.m == 0:
            part = slice(c, c + pattern.m)
            keep[:, part] = keep_mask(pattern, W[:, part] ** 2 / d[part], sparsity)
        if not pattern.m and c % block == 0:
            part = slice(c, min(c + block, columns))
            zeros = round(sparsity * rows * part.stop) - round(sparsity * rows * c)
            saliency = (W[:, part] ** 2 / d[part]).flatten()
            chosen = torch.ones(saliency.numel(), dtype=torch.bool)
            chosen[saliency.argsort(stable=True)[:zeros]] = False
            keep[:, part] = chosen.view(rows, -1)
        if group and c % group == 0:
            part = slice(c, min(c + group, columns))
            kept = keep.clone()
            for start in range(c, part.stop):  # what is not chosen yet is estimated
                if pattern.m and start % pattern.m == 0:
                    later = slice(start, start + pattern.m)
                    kept[:, later] = keep_mask(pattern, W[:, later] ** 2 / d[later], sparsity)
            kept = kept[:, part]
            scale = least_squares_scale((W[:, part] * kept).T.contiguous(), importance[part])
        for r in range(rows):
            value = 0.0
            if keep[r, c]:
                value = scale[r] * min(max(round(float(W[r, c] / scale[r])), -8), 7) if group else W[r, c]
            W[r, c:] -= (W[r, c] - value) / inverse[0, 0] * inverse[0]
            W[r, c] = value
        inverse = without_first(inverse)
    return W, keep


def matches_the_naive_reference(
    weight: Tensor, hessian: Hessian, pattern: Pattern, sparsity: float, block: int
) -> None:
    """Same mask and weights in float64; in float32 the same mask up to ties, and weights within rounding."""
    expected, keep = naive(weight, hessian.H, pattern, sparsity, block)
    exact, exact_keep = prune(weight.double(), double(hessian), pattern, sparsity, block=block)
    assert torch.equal(exact_keep, keep)
    torch.testing.assert_close(exact, expected, rtol=1e-7, atol=1e-9)
    got, got_keep = prune(weight, hessian, pattern, sparsity, block=block)
    assert int((got_keep != keep).sum()) <= 2 + keep.numel() // 2000, "float32 may part with the reference at ties only"
    same = (got_keep == keep).all(1)
    assert int(same.sum()) >= len(same) // 2
    scale = float(weight.abs().mean())
    torch.testing.assert_close(got[same].double(), expected[same], rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "4:8", "3:8", "2:8", "7:8", "8:16", "5:16", "8:32"])
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_equals_the_naive_reference(pattern: str, sparsity: float) -> None:
    wanted = Pattern.parse(pattern)
    if wanted.m and sparsity == 0.75:
        pytest.skip("N:M has one sparsity")
    weight, hessian = problem(12, 96, 400)
    matches_the_naive_reference(weight, hessian, wanted, wanted.resolve(None) if wanted.m else sparsity, block=32)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "columns"),
    [
        ("unstructured", 0, 96), ("unstructured", 0, 256), ("unstructured", 0.5, 96), ("unstructured", 0.5, 250),
        ("2:4", 0.5, 96), ("2:4", 0.5, 256), ("2:8", 0.75, 96), ("2:8", 0.75, 256),
        ("2:5", 0.6, 175), ("24:64", 0.625, 256), ("32:64", 0.5, 192),  # groups of M and of a scale do not fit
    ],
)  # fmt: skip
def test_pruning_and_rounding_at_once_equals_the_naive_reference(pattern: str, sparsity: float, columns: int) -> None:
    """In float64 code for code; in float32 a code may fall to the other side, and the error stays."""
    weight, hessian = problem(12, columns, 600)
    goal = Goal(Pattern.parse(pattern), sparsity, group_of(Pattern.parse(pattern)))
    order = hessian.order(goal.ordered)
    H = hessian.H[order][:, order]
    expected, keep = naive(weight[:, order], H, goal.pattern, sparsity, goal.block(64), goal.group)
    codes, kept = prune_and_round(weight.double(), double(hessian), goal, block=64)
    assert torch.equal(kept[:, order], keep)
    torch.testing.assert_close(codes.weight()[:, order], expected.float(), rtol=1e-6, atol=0)
    single, _ = prune_and_round(weight, hessian, goal, block=64)
    errors = [relative_error(weight, c.weight(), hessian.H) for c in (single, codes)]
    assert errors[0] < 1.05 * errors[1]


def test_the_most_important_groups_come_first_and_stay_whole() -> None:
    diagonal = torch.tensor([1.0, 1, 1, 9, 5, 5, 0, 3, 99])
    assert Hessian.of(torch.diag(diagonal)).order(2).tolist() == [2, 3, 4, 5, 6, 7, 0, 1, 8]
    assert Hessian.of(torch.diag(diagonal)).order(0).tolist() == [*range(9)]
    _, hessian = problem(1, 96, 400)
    H, order = hessian.H.double(), hessian.order(32)
    U = double(hessian).factor(32)
    damped = H[order][:, order] + DAMPING * H.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U @ damped, torch.eye(96, dtype=torch.float64), rtol=0, atol=1e-8)
    assert torch.equal(double(hessian).factor(), inverse_factor(H, DAMPING))


def test_rounding_holds_the_mask_and_what_is_pruned_has_code_0() -> None:
    weight, hessian = problem(16, 256, 900)
    pruned, keep = prune(weight, hessian, Pattern(2, 4), 0.5)
    codes, kept = prune_and_round(pruned, hessian, Goal(group=64), ~keep)
    assert torch.equal(kept, keep) and bool((codes.codes[~keep] == 0).all())
    assert codes.scale.shape == (16, 4) and codes.scale.dtype == torch.float16


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("unstructured", 0), ("unstructured", 0.5), ("2:4", 0.5), ("2:8", 0.75)]
)
def test_joint_rounding_is_better_than_rounding_afterwards(pattern: str, sparsity: float) -> None:
    weight, hessian = problem(64, 256, 2000, seed=3)
    goal = Goal(Pattern.parse(pattern), sparsity, group_of(Pattern.parse(pattern)))
    joint, _ = prune_and_round(weight, hessian, goal)
    pruned = prune(weight, hessian, goal.pattern, sparsity)[0] if sparsity else weight
    after = int4_codes(pruned, goal.group, hessian.importance(goal.damping))
    errors = [relative_error(weight, w, hessian.H) for w in (pruned, joint.weight(), after.weight())]
    assert errors[1] - errors[0] < 0.8 * (errors[2] - errors[0]), "what rounding adds to the error of pruning"


def test_rounding_of_dead_inputs_few_tokens_and_zero_rows_works() -> None:
    weight, hessian = problem(6, 64, 2)
    hessian.H[5] = hessian.H[:, 5] = 0
    weight[2] = 0
    for inputs in (hessian, Hessian.of(torch.zeros(64, 64))):
        codes, _ = prune_and_round(weight, inputs, Goal(group=32))
        assert bool((codes.codes[2] == 0).all()) and bool((codes.codes[:, 5] == 0).all())
        assert bool(torch.isfinite(codes.scale).all()) and bool((codes.scale != 0).all())


@pytest.fixture(scope="module")
def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Hessian]:
    """SmolLM2's first q_proj, and the Hessian of what it reads. Read only."""
    model = Streamed(smollm2)
    ids = sequences("demo:train", checkpoint.load_tokenizer(smollm2), 2048, 256, 0)
    activations = sequential.Activations(model, ids, tmp_path_factory.mktemp("real") / "hidden")
    layer = model.load(0)
    hessian = sequential.hessians(layer, 0, activations)["self_attn.q_proj"]
    return layer.self_attn.q_proj.weight.detach(), hessian


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2:8"])
def test_equals_the_naive_reference_on_a_real_layer(pattern: str, real: tuple[Tensor, Hessian]) -> None:
    weight, hessian = real
    wanted = Pattern.parse(pattern)
    matches_the_naive_reference(weight[:24], hessian, wanted, wanted.resolve(None), 128)


@pytest.mark.parametrize("pattern", ["dense", "unstructured", "2:4", "4:8", "2:8"])
def test_joint_rounding_of_a_real_layer_beats_rounding_afterwards(pattern: str, real: tuple[Tensor, Hessian]) -> None:
    """‖(W - Ŵ)X‖² on real activations, afterwards by the same scales as within the sweep."""
    weight, hessian = real
    goal = Goal()
    if pattern != "dense":
        goal = Goal(Pattern.parse(pattern), Pattern.parse(pattern).resolve(None))
    goal = replace(goal, group=group_of(goal.pattern))
    joint, _ = prune_and_round(weight, hessian, goal)
    pruned = prune(weight, hessian, goal.pattern, goal.sparsity)[0] if goal.sparsity else weight
    after = int4_codes(pruned, goal.group, hessian.importance(goal.damping))
    errors = [relative_error(weight, codes.weight(), hessian.H) for codes in (joint, after)]
    assert errors[0] < (0.5 if pattern == "dense" else 0.98) * errors[1]


def test_block_size_of_nm_changes_nothing_but_rounding() -> None:
    weight, hessian = problem(8, 64, 300)
    wide, narrow = (prune(weight.double(), double(hessian), Pattern(2, 4), 0.5, block=b)[0] for b in (64, 8))
    torch.testing.assert_close(wide, narrow, rtol=1e-9, atol=1e-9)


def test_the_factor_is_the_inverses() -> None:
    _, hessian = problem(1, 700, 2000)  # more than one level of the recursive inverse
    H = hessian.H.double()
    U = inverse_factor(H, DAMPING)
    damped = H + DAMPING * H.diagonal().mean() * torch.eye(700, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U @ damped, torch.eye(700, dtype=torch.float64), rtol=0, atol=1e-8)
    assert torch.equal(U, U.triu()) and (U.diagonal() > 0).all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2:8"])
def test_error_is_below_wandas_and_that_below_magnitudes(pattern: str) -> None:
    weight, hessian = problem(64, 128, 2000, seed=3)
    wanted = Pattern.parse(pattern)
    errors = {
        name: relative_error(weight, method(weight, hessian, wanted, wanted.resolve(None))[0], hessian.H)
        for name, method in METHODS.items()
    }
    assert errors["sparsegpt"] < 0.9 * errors["wanda"] < 0.9 * errors["magnitude"]


PATTERNS = st.one_of(
    st.just(Pattern()),
    st.sampled_from([4, 8, 16, 32]).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: Pattern(n, m))),
)


@settings(max_examples=60)
@given(PATTERNS, st.sampled_from(sorted(METHODS)), st.integers(1, 12), st.integers(1, 5), st.floats(0.1, 0.9))
def test_zeros_are_exact_and_pruning_again_keeps_the_mask(
    wanted: Pattern, method: str, rows: int, groups: int, sparsity: float
) -> None:
    columns = 32 * groups
    share = wanted.resolve(None if wanted.m else sparsity)
    weight, hessian = problem(rows, columns, 64)
    once, keep = METHODS[method](weight, hessian, wanted, share)
    assert obeys(once, wanted) and torch.equal(once != 0, keep)
    expected = rows * round(share * columns) if method == "wanda" else round(share * rows * columns)
    assert int((~keep).sum()) == (rows * columns * (wanted.m - wanted.n) // wanted.m if wanted.m else expected)
    if method != "alps":  # which looks for a better mask each time
        again, again_keep = METHODS[method](once, hessian, wanted, share)
        assert torch.equal(again_keep, keep) and torch.equal(again, once)


def test_wanda_compares_inside_a_row_and_magnitude_does_not_look_at_inputs() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    hessian = Hessian.of(torch.diag(torch.tensor([2.0, 2.0, 2.0, 2.0])))
    assert wanda(weight, hessian, Pattern(), 0.5)[1].tolist() == [[False, False, True, True]] * 2
    assert magnitude(weight, hessian, Pattern(), 0.5)[1].tolist() == [[False] * 4, [True] * 4]
    hessian.H[0, 0] = 200.0  # a loud input saves its weight under wanda
    assert wanda(weight, hessian, Pattern(), 0.5)[1].tolist() == [[True, False, False, True]] * 2


def test_dead_inputs_few_tokens_and_zero_rows_work() -> None:
    weight, hessian = problem(6, 32, 400)
    hessian.H[5] = hessian.H[:, 5] = 0
    got, _ = prune(weight, hessian, Pattern(2, 4), 0.5)
    assert (got[:, 5] == 0).all() and torch.isfinite(got).all()
    for tokens in (1, 3):  # far fewer than columns: the Hessian is singular
        got, keep = prune(*problem(6, 32, tokens), Pattern(), 0.5)
        assert torch.isfinite(got).all() and int((~keep).sum()) == 96
    weight[2] = 0
    got, _ = prune(weight, hessian, Pattern(2, 4), 0.5)
    assert (got[2] == 0).all()
    nothing = Hessian.of(torch.zeros(32, 32))  # every input dead: nothing matters, and nothing is NaN
    for method in METHODS.values():
        got, _ = method(weight, nothing, Pattern(2, 4), 0.5)
        assert torch.isfinite(got).all()


def test_hessian_is_the_mean_outer_product_however_it_is_fed(monkeypatch) -> None:
    monkeypatch.setattr(sparsegpt, "TILE", 3)
    x = torch.randn(90, 7, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(7)
    for part in (x[:1], x[1:50].view(7, 7, 7), x[50:]):
        hessian.add(part)
    hessian.finish()
    torch.testing.assert_close(hessian.H, 2 * x.T @ x / 90, rtol=1e-5, atol=1e-6)
    assert torch.equal(hessian.H, hessian.H.T)
    torch.testing.assert_close(hessian.norms(), x.pow(2).mean(0).sqrt(), rtol=1e-5, atol=1e-6)


def test_relative_error_is_that_of_the_outputs(monkeypatch) -> None:
    monkeypatch.setattr(sparsegpt, "TILE", 20)  # several tiles, the last one smaller
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(64)
    hessian.add(x)
    hessian.finish()
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    pruned, _ = magnitude(weight, hessian, Pattern(), 0.5)
    expected = ((weight - pruned) @ x.T).pow(2).sum() / (weight @ x.T).pow(2).sum()
    assert relative_error(weight, pruned, hessian.H) == pytest.approx(float(expected), rel=1e-4)
    assert relative_error(torch.zeros(10, 64), pruned * 0, hessian.H) == 0


# ---- refinement


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:8", None), ("unstructured", 0.75)])
def test_refinement_reaches_the_least_squares_optimum_on_the_mask(pattern: str, sparsity: float | None) -> None:
    wanted = Pattern.parse(pattern)
    weight, hessian = problem(10, 64, 500)
    once, keep = prune(weight, hessian, wanted, wanted.resolve(sparsity))
    got = refine(weight.double(), once.double(), keep, hessian.H.double(), steps=200)
    H = hessian.H.double() + DAMPING * hessian.H.diagonal().mean() * torch.eye(64)
    for row in range(10):  # solved directly: H_SS w_S = (H w)_S
        s = keep[row]
        best = torch.linalg.solve(H[s][:, s], (H @ weight[row].double())[s])
        torch.testing.assert_close(got[row][s], best, rtol=1e-6, atol=1e-8)
        assert (got[row][~s] == 0).all()
    few = refine(weight, once, keep, hessian.H)
    errors = [relative_error(weight, w, hessian.H) for w in (once, few, got.float())]
    assert errors[1] < 0.9 * errors[0] and errors[1] < 1.02 * errors[2]


def test_refinement_of_degenerate_weights_is_finite() -> None:
    weight, hessian = problem(6, 32, 3)
    weight[2] = 0
    hessian.H[5] = hessian.H[:, 5] = 0
    once, keep = prune(weight, hessian, Pattern(2, 4), 0.5)
    got = refine(weight, once, keep, hessian.H, steps=100)
    assert torch.isfinite(got).all() and (got[~keep] == 0).all() and (got[2] == 0).all()
    assert torch.isfinite(refine(weight, once, keep, torch.zeros(32, 32))).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("between", ["as it was", "moved"])
@pytest.mark.parametrize(
    ("first", "then"), [((Pattern(), 0.3), (Pattern(), 0.4)), ((Pattern(6, 8), 0.25), (Pattern(2, 8), 0.75))]
)
def test_pruning_a_pruned_weight_further_only_adds_zeros(name: str, first, then, between: str) -> None:
    """The errors that are carried to the right must not revive a zero, nor may the count miss what is asked for."""
    weight, hessian = problem(24, 256, 900)
    pruned, keep = METHODS[name](weight, hessian, *first)
    if between == "moved" and not first[0].m:  # as re-selection may: one half has more zeros than will be asked for
        keep = torch.ones_like(keep)
        keep[:, :128] = torch.rand(24, 128, generator=torch.Generator().manual_seed(0)) > 0.6
        pruned = weight * keep
    trained = pruned + 0.1 * torch.randn(pruned.shape, generator=torch.Generator().manual_seed(1)) * keep
    again, kept = METHODS[name](trained, hessian, *then, trained == 0)
    assert bool((again[~keep] == 0).all()) and not bool((kept & ~keep).any()) and obeys(again, then[0])
    zeros = then[1] * weight.numel()
    if name == "wanda" and not then[0].m:  # row by row, and a row may have had more
        assert int((again == 0).sum()) >= 24 * round(zeros / 24)
    else:
        assert int((again == 0).sum()) == int((~kept).sum()) == round(zeros)


def test_a_denser_request_keeps_the_zeros_there_are() -> None:
    weight, hessian = problem(16, 128, 300)
    for method in METHODS.values():
        pruned, keep = method(weight, hessian, Pattern(), 0.5)
        again, kept = method(pruned, hessian, Pattern(), 0.3, pruned == 0)
        assert torch.equal(kept, keep)
        torch.testing.assert_close(again, pruned, rtol=1e-4, atol=1e-4 if method is METHODS["alps"] else 0)
