"""Which arithmetic `--dtype auto` trains in."""

import pytest
import torch

from sparsedraft.base.processes import arithmetic


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
    ],
)
def test_auto_goes_by_the_instructions_of_the_cpu(able: dict, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert arithmetic("auto", "cpu") == expected
    assert [arithmetic(name, "cpu") for name in ("float32", "bfloat16")] == ["float32", "bfloat16"], "as asked for"


def test_auto_is_float32_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert arithmetic("auto", "cpu") == arithmetic("auto", "mps") == "float32"
