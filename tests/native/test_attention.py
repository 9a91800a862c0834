"""Attention's kernels: right, and with the same bits in every set and beside whatever other queries."""

import numpy as np
import pytest

from sparsedraft.native import extension as native

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

NAMES = native.extension().names() if native.is_built() else []  # of the sets of kernels that run here

TOLERANCE = 4e-4  # of values of about 1: twice what it takes; float16 in the place of keys and values would need 9e-4


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.int32), b.view(np.int32))


def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    begin: list[int],
    end: list[int],
    name: str | None = None,
    bits: int = 16,
) -> np.ndarray:
    return native.extension().attend(queries, keys, values, queries.shape[1] ** -0.5, begin, end, name, bits)


def in_bytes(x: np.ndarray) -> np.ndarray:
    """Each row of `x` rounded to integers up to 127 with one scale."""
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    return np.rint(x / scale) * scale


def reference(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, begin: list[int], end: list[int]
) -> np.ndarray:
    """The same in float64, from the definition."""
    found = []
    for query, first, last in zip(queries.astype(float), begin, end, strict=True):
        scores = keys[first:last].astype(float) @ query * len(query) ** -0.5
        weights = np.exp(scores - scores.max())
        found.append(weights @ values[first:last].astype(float) / weights.sum())
    return np.array(found)


@pytest.mark.parametrize("dim", [*range(1, 36), 63, 64, 65, 80, 96, 127, 128, 256])
def test_heads_of_every_size(dim: int) -> None:
    queries, keys, values = numbers(1, dim, seed=dim), numbers(97, dim, seed=dim + 1), numbers(97, dim, seed=dim + 2)
    for count in (1, 2, 7, 31, 32, 33, 64, 97):
        found = [attend(queries, keys[:count], values[:count], [0], [count], name) for name in NAMES]
        expected = reference(queries, keys, values, [0], [count])
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=TOLERANCE)
        assert all(same(found[0], other) for other in found[1:]), f"{NAMES} differ with {count} keys"


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 80, 128, 256])
def test_keys_and_values_of_8_bits(dim: int) -> None:
    """Attention to the rounded ones is as exact as ever; windows begin within blocks."""
    queries, keys, values = numbers(9, dim, seed=dim), numbers(97, dim, seed=dim + 1), numbers(97, dim, seed=dim + 2)
    begin, end = [0, 0, 0, 3, 5, 31, 32, 40, 64], [1, 2, 31, 32, 33, 64, 65, 96, 97]
    found = [attend(queries, keys, values, begin, end, name, 8) for name in NAMES]
    expected = reference(queries, in_bytes(keys), in_bytes(values), begin, end)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=TOLERANCE)
    assert all(same(found[0], other) for other in found[1:])
    assert not same(found[0], attend(queries, keys, values, begin, end))


@pytest.mark.parametrize("seed", range(12))
def test_queries_beside_others(seed: int) -> None:
    """Any number of queries, with or without a window: each has the bits that it has alone, in every set."""
    chance = np.random.default_rng(seed)
    rows, count, dim = (int(chance.integers(1, most)) for most in (65, 200, 150))
    queries, keys, values = (numbers(n, dim, seed=seed + i) for i, n in enumerate((rows, count, count)))
    end = sorted(int(n) for n in chance.integers(1, count + 1, rows))
    window = int(chance.integers(1, 90)) if seed % 2 else count
    begin = [max(0, n - window) for n in end]
    together = attend(queries, keys, values, begin, end, NAMES[0])
    np.testing.assert_allclose(together, reference(queries, keys, values, begin, end), rtol=0, atol=TOLERANCE)
    for name in NAMES:
        assert same(attend(queries, keys, values, begin, end, name), together), name
        for r in range(0, rows, 3):
            alone = attend(queries[r : r + 1], keys, values, begin[r : r + 1], end[r : r + 1], name)
            assert same(alone[0], together[r])


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e6, 1e15])
def test_numbers_of_any_size(size: float) -> None:
    """Keys and values beyond float16's range, and far below it; a key with one number that outweighs the others."""
    queries, keys, values = numbers(3, 64, seed=1), numbers(50, 64, seed=2), numbers(50, 64, seed=3)
    keys[:, 5] += 20
    begin, end = [0, 0, 9], [30, 40, 50]
    found = attend(*(np.float32(x) for x in (queries / size, keys * size, values * size)), begin, end)
    expected = reference(queries, keys, values, begin, end)
    np.testing.assert_allclose(found / size, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value", "query"])
def test_what_is_not_finite_reaches_those_that_see_it(poison: float, where: str) -> None:
    """And only those, whichever block it is in."""
    for at in (3, 40, 69):
        queries, keys, values = numbers(2, 24, seed=1), numbers(70, 24, seed=2), numbers(70, 24, seed=3)
        sound = attend(queries, keys, values, [0, 0], [at, 70])
        {"key": keys, "value": values, "query": queries}[where][1 if where == "query" else at, 7] = poison
        for name in NAMES:  # what the first query sees ends before it
            found = attend(queries, keys, values, [0, 0], [at, 70], name)
            assert same(found[0], sound[0]) and np.isnan(found[1]).all()
            if where != "query":  # and the other way round: the second one sees what comes after it
                found = attend(queries, keys, values, [0, min(at + 1, 69)], [at + 1, 70], name)
                assert np.isnan(found[0]).all() and np.isnan(found[1]).all() == (at == 69)


def test_a_weight_of_nothing() -> None:
    """Scores far below the largest add nothing, and queries of zeros see all alike."""
    keys, values = numbers(64, 32, seed=1), numbers(64, 32, seed=2)
    keys[10] *= 1e4
    found = attend(keys[10:11], keys, values, [0], [64])
    np.testing.assert_allclose(found[0], values[10], rtol=0, atol=TOLERANCE)
    found = attend(np.zeros((1, 32), np.float32), keys, values, [0], [64])
    np.testing.assert_allclose(found[0], values.mean(0), rtol=0, atol=TOLERANCE)
