"""The three ways to leave the middle of a text out agree where they must."""

from pathlib import Path

import pytest
import torch

import windows
from sparsedraft.native.loading import load
from sparsedraft.speculate.drafters.window import Window

TEXT = ([5, 9, 12, 40, 41, 42, 43, 44, 45, 46, 47, 48], [50, 51, 52, 53, 54, 55])


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> torch.nn.Module:
    return load(tiny_checkpoint)


@pytest.mark.parametrize("way", windows.WAYS)
def test_a_window_that_holds_everything_leaves_nothing_out(model: torch.nn.Module, way: str) -> None:
    whole = windows.guessed(model, TEXT, "all", None)
    assert torch.equal(windows.guessed(model, TEXT, way, Window(64, 2)), whole)


def test_kept_and_re_based_differ_in_positions_alone(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens are read; kept, the last one has the place that it has in the text."""
    seen: dict[str, list] = {}

    def guesses(model, ids, count, mask=None, positions=None):
        seen.setdefault(way, []).append((ids, positions.tolist()))
        return torch.zeros(count, dtype=torch.int64)

    monkeypatch.setattr(windows, "guesses", guesses)
    for way in ("re-based", "kept"):
        windows.guessed(model, TEXT, way, Window(6, 2))
    whole = [*TEXT[0], *TEXT[1]]
    for (ids, based), (again, kept) in zip(seen["re-based"], seen["kept"], strict=True):
        assert ids == again and based == [*range(len(ids))]
        assert ids == [whole[place] for place in kept] and kept[:2] == [0, 1]
    assert len(seen["kept"]) > 1


def test_a_sliding_token_sees_the_first_and_the_last(model: torch.nn.Module) -> None:
    sees = windows.attended(8, Window(3, 2))
    assert [row.nonzero().squeeze(1).tolist() for row in sees][-2:] == [[0, 1, 4, 5, 6], [0, 1, 5, 6, 7]]
    assert sees[0].tolist() == [True, *[False] * 7]
