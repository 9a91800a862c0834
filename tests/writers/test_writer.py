"""Whole answers by the native engine: a row's text is what it is alone, whoever shares the batch."""

import random
from pathlib import Path

import pytest
import torch

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.text import dataset
from sparsedraft.text.sample import Sample
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.native import NativeWriter
from sparsedraft.writers.protocol.requests import Request
from stages import distill

pytestmark = pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
made = packed_folders.made


def requests(count: int = 11) -> list[Request]:
    rng = random.Random(0)
    return [
        Request(str(i), [rng.randrange(3, 320) for _ in range(rng.randrange(1, 30))], rng.randrange(1, 20), seed=i)
        for i in range(count)
    ]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=20), Sampling(repetition_penalty=1.3)])
def test_rows_are_those_of_one_at_a_time(made, sampling: Sampling) -> None:
    side = LoadedModel.load(made("qwen2", False, "2:4", "int8")[1], runtime="native")
    assert side.native is not None
    found = []
    for batch_size in (1, 3, 32):
        writer = side.writer(batch_size)
        assert isinstance(writer, NativeWriter) and writer.context == 128
        done = sorted(writer.generate(requests(), sampling, 4), key=lambda output: int(output.id))
        assert [output.id for output in done] == [r.id for r in requests()]
        found.append(done)
    assert found[0] == found[1] == found[2]
    for request, output in zip(requests(), found[0], strict=True):
        ended = output.finish_reason == "eos"
        assert 0 < len(output.token_ids) <= request.max_new_tokens
        assert ended == (output.token_ids[-1] in side.eos_ids) and (
            ended or len(output.token_ids) == request.max_new_tokens
        )
        assert len(output.topk_ids) == len(output.token_ids) and all(len(ids) == 4 for ids in output.topk_ids)
        if sampling == Sampling():
            assert [ids[0] for ids in output.topk_ids] == output.token_ids and output.min_gap > 0
            alone = Pair.of(side, None, "auto", sampling)
            asked = alone.prompt_pair([*request.prompt_ids])
            plain = generate(alone.decoder([asked], Constant(0), sampling), asked.target, request.max_new_tokens)
            assert plain.tokens == output.token_ids
            ((ids, logprobs),) = writer.score([Sample("a", request.prompt_ids, output.token_ids)], 4)
            assert ids == [i for row in output.topk_ids for i in row]
            torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(output.topk_logprobs).flatten())


def test_what_does_not_fit(made) -> None:
    writer = LoadedModel.load(made("llama", True, "2:4", "int8")[1], runtime="native").writer(2)
    with pytest.raises(UserError, match="exceed the context"):
        list(writer.generate([Request("a", [5] * (writer.context or 0), 2)], Sampling()))
    with pytest.raises(UserError, match="the token 999"):
        list(writer.generate([Request("a", [999], 2)], Sampling()))
    with pytest.raises(UserError, match="--top-k-logprobs 400 is more than the 320"):
        list(writer.generate([Request("a", [5], 2)], Sampling(), 400))


def test_distil_with_a_packed_target(made, tmp_path: Path) -> None:
    folder = str(made("llama", True, "2:4", "int8")[1])
    result = distill(
        folder, "demo:train", tmp_path / "native", engine="native", limit=5, max_new_tokens=6, batch_size=2
    )
    rows = list(dataset.read(tmp_path / "native"))
    assert result["rows"] == len(rows) >= 5 and {row["engine"] for row in rows} == {"native"}
    with pytest.raises(UserError, match="--engine native computes in float32"):
        distill(folder, "demo:train", tmp_path / "bf16", engine="native", dtype="bfloat16")
