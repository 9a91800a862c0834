"""The native engine against transformers, family by family; with itself bit for bit, however the tokens come."""

import json
import random
import threading
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from packed_folders import ENGINE, close
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.native import extension as native
from sparsedraft.native import model as native_models
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine, Session
from sparsedraft.writers.prefix import PrefixCache
from sparsedraft.writers.transformers.backend import TransformersBackend

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

SIZE = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 104, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": hf.LlamaConfig(**SIZE),
    "llama, tied, biases": hf.LlamaConfig(**SIZE, tie_word_embeddings=True, attention_bias=True),
    "llama 3": hf.LlamaConfig(**SIZE, rope_parameters=LLAMA3),
    "llama, yarn": hf.LlamaConfig(**SIZE, rope_parameters=YARN),
    "llama, linear": hf.LlamaConfig(**SIZE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "one head for keys": hf.LlamaConfig(**{**SIZE, "num_key_value_heads": 1}, head_dim=20),
    "mistral": hf.MistralConfig(**SIZE, sliding_window=None),
    "mistral with a window": hf.MistralConfig(**SIZE, sliding_window=16),
    "qwen2": hf.Qwen2Config(**SIZE),
    "qwen2, tied": hf.Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": hf.Qwen3Config(**SIZE, head_dim=16),
    "gemma3": hf.Gemma3TextConfig(**SIZE, head_dim=16, query_pre_attn_scalar=24, **SLIDING),
}


def saved(config: hf.PretrainedConfig, folder: Path, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    hf.set_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms and biases that do something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids_of(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = saved(FAMILIES[family], tmp_path, dtype)
    ids = ids_of(70)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    found = Engine(tmp_path, threads=1).forward(ids, len(ids))
    close(found, expected, ENGINE)


@pytest.mark.parametrize("family", ["qwen2", "mistral with a window", "gemma3"])
def test_however_the_tokens_come(family: str, tmp_path: Path) -> None:
    """Pieces of any length, roll-backs at random points: each token's logits have the same bits."""
    saved(FAMILIES[family], tmp_path, torch.bfloat16)
    engine, ids, chance = Engine(tmp_path, threads=2), ids_of(60), random.Random(0)
    expected = engine.forward(ids, len(ids))
    engine.rollback(0)
    for _ in range(60):
        at = engine.length
        count = min(chance.randint(1, 9), len(ids) - at)
        if count:
            assert torch.equal(engine.forward(ids[at : at + count], count), expected[at : at + count])
            assert engine.length == at + count
        wrong = ids_of(chance.randint(0, 5), seed=chance.randrange(99))
        if wrong and engine.length + len(wrong) < 250:
            engine.forward(wrong, 0)
        engine.rollback(chance.randint(max(0, at - 5), at + count))


@pytest.mark.parametrize("family", ["qwen2", "mistral with a window", "gemma3"])
def test_logits_that_are_not_wanted_change_nothing(family: str, tmp_path: Path) -> None:
    """Of several sequences at once, the last tokens' logits, as many as each asks for, have the bits of a whole pass;
    so has what is read behind tokens of which nothing was asked."""
    saved(FAMILIES[family], tmp_path, torch.bfloat16)
    session, chance = Session(native_model(tmp_path), 3, threads=2), random.Random(0)
    texts = [ids_of(50, seed=seed) for seed in range(3)]
    expected = session.forward(texts, [50, 50, 50])
    for _ in range(20):
        session.rollback([0, 0, 0])
        at = [0, 0, 0]
        while min(at) < 50:
            counts = [min(chance.choice([0, 1, 5, 23]), 50 - begin) for begin in at]
            wanted = [chance.choice([0, 0, 1, count // 2, count]) if count else 0 for count in counts]
            if not any(counts):
                continue
            pieces = [text[begin : begin + count] for text, begin, count in zip(texts, at, counts, strict=True)]
            found = session.forward(pieces, wanted)
            at = [begin + count for begin, count in zip(at, counts, strict=True)]
            for row in range(3):
                assert torch.equal(found[row], expected[row][at[row] - wanted[row] : at[row]])
    assert session.lengths == [50, 50, 50]


@pytest.mark.parametrize("family", ["qwen2", "mistral with a window", "gemma3"])
def test_trees(family: str, tmp_path: Path) -> None:
    """Every node's logits are those of its own branch; the kept branch is the sequence from then on."""
    saved(FAMILIES[family], tmp_path)
    engine, text = Engine(tmp_path, threads=1), ids_of(30)
    nodes, parents = ids_of(7, seed=1), [-1, -1, 0, 0, 1, 2, 5]
    engine.forward(text, 0)
    first = engine.forward(nodes[:4], 4, parents[:4])
    found = torch.cat([first, engine.forward(nodes[4:], 3, parents)])
    alone = Engine(engine.model, pool=engine.pool)
    for node in range(7):
        branch, at = [], node
        while at >= 0:
            branch, at = [nodes[at], *branch], parents[at]
        alone.rollback(0)
        assert torch.equal(alone.forward([*text, *branch])[0], found[node])
    engine.keep(30, [0, 2, 5])
    assert engine.length == 33
    alone.rollback(0)
    more = ids_of(3, seed=2)
    whole = [*text, *(nodes[i] for i in (0, 2, 5)), *more]
    assert torch.equal(engine.forward(more, 3), alone.forward(whole, 3))


@pytest.mark.parametrize("family", ["qwen2", "mistral with a window"])
def test_trees_across_blocks_of_keys(family: str, tmp_path: Path) -> None:
    """Random trees, deep ones too, behind texts of any length, read in pieces: each node has the bits of its branch."""
    saved(FAMILIES[family], tmp_path, torch.bfloat16)
    tree = Engine(tmp_path, threads=2)
    alone, chance = Engine(tree.model, pool=tree.pool), random.Random(3)
    for length in (1, 31, 32, 33, 70):
        text, nodes = ids_of(length), ids_of(60, seed=length)
        parents = [chance.randint(max(-1, i - 3), i - 1) for i in range(60)]
        tree.rollback(0)
        tree.forward(text, 0)
        cut = chance.randint(1, 59)
        found = torch.cat([tree.forward(nodes[:cut], cut, parents[:cut]), tree.forward(nodes[cut:], 60 - cut, parents)])
        for node in (0, 1, 17, 40, 59):
            branch, at = [node], parents[node]
            while at >= 0:
                branch, at = [at, *branch], parents[at]
            alone.rollback(0)
            alone.forward(text, 0)
            expected = alone.forward([nodes[i] for i in branch], len(branch))
            assert torch.equal(found[branch], expected)
        tree.keep(length, branch)
        assert torch.equal(tree.forward([5]), alone.forward([5]))


def test_backends_agree(tmp_path: Path) -> None:
    """The loop's two backends, rows and all."""
    model = saved(FAMILIES["qwen3"], tmp_path)
    both = [Session(native_model(tmp_path), 2, threads=1), TransformersBackend(model, 2)]
    seen = []
    for backend in both:
        out = backend.forward([ids_of(9), ids_of(4, 1)], [1, 2])
        out += backend.forward([[], [7, 8]], [0, 2])
        backend.rollback([5, 6])
        out += backend.forward([[3], [4, 5]], [1, 1])
        backend.select([1])
        out += backend.forward([[9]], [1])
        seen.append((torch.cat(out), backend.lengths))
    assert seen[0][1] == seen[1][1] == [9]
    close(seen[0][0], seen[1][0], ENGINE)


def test_a_row_is_selected_once_or_not_at_all(tmp_path: Path) -> None:
    """By every backend in the same way, and where it is refused all rows are as they were."""
    model = saved(FAMILIES["qwen3"], tmp_path)
    for backend in (
        Session(native_model(tmp_path), 2, threads=1),
        TransformersBackend(model, 2),
        PrefixCache(Session(native_model(tmp_path), 2, threads=1)),
    ):
        backend.forward([[5, 6], [7]], [1, 1])
        for wrong in ([0, 0], [1, 0, 1], [2], [-1]):
            with pytest.raises(ValueError, match="among the 2 that are there, each once"):
                backend.select(wrong)
        assert backend.lengths == [2, 1]
        backend.select([1])
        found = backend.forward([[9]], [1])[0]
        assert torch.equal(found.argmax(-1), model(torch.tensor([[7, 9]])).logits[0, -1:].argmax(-1))
    engine = Session(native_model(tmp_path), 2, threads=1)._session
    with pytest.raises(ValueError, match="each once"):
        engine.select([0, 0])
    assert engine.lengths == [0, 0], "no row is lost"
    with pytest.raises(ValueError, match="one row"):
        engine.keep(0, [0])
    with pytest.raises(ValueError, match="for each row"):
        engine.draft([[1]], [2])


def test_rows_do_not_touch_each_other(tmp_path: Path) -> None:
    """Several sequences in one pass: each has the bits that it has alone."""
    saved(FAMILIES["gemma3"], tmp_path, torch.bfloat16)
    rows, chance = Session(native_model(tmp_path), 3, threads=2), random.Random(1)
    alone = [Engine(rows.model, pool=rows.pool) for _ in range(3)]
    for turn in range(30):
        if turn == 20:
            rows.select([2, 0])
            alone = [alone[2], alone[0]]
        ids = [ids_of(chance.choice([0, 1, 3, 7]), seed=chance.randrange(999)) for _ in alone]
        wanted = [chance.randint(0, len(row)) for row in ids]
        for engine, row, k, found in zip(alone, ids, wanted, rows.forward(ids, wanted), strict=True):
            if row:
                assert torch.equal(found, engine.forward(row, k))
        lengths = [max(0, engine.length - chance.choice([0, 0, 2, 9])) for engine in alone]
        rows.rollback(lengths)
        for engine, n in zip(alone, lengths, strict=True):
            engine.rollback(n)
        assert rows.lengths == [engine.length for engine in alone]


def test_two_engines_in_two_threads(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    shared = native_model(tmp_path)
    first = Engine(shared, threads=2)
    expected = first.forward(ids_of(40), 40)
    engines = [
        Engine(shared, threads=2),
        Engine(shared, threads=1),
        Engine(shared, pool=first.pool),
        Engine(shared, pool=first.pool),
    ]
    found: list[list[torch.Tensor]] = [[] for _ in engines]

    def work(index: int) -> None:
        for i in range(40):
            found[index].append(engines[index].forward(ids_of(40)[i : i + 1]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(torch.cat(rows), expected) for rows in found)


def test_bad_calls(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    engine = Engine(tmp_path, threads=1)
    for ids, logits, message in (
        ([320], 1, "token 320 is not in"),
        ([-1], 1, "token -1"),
        ([], 1, "must be tokens"),
        ([1], 2, "no more logits"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.forward(ids, logits)
    with pytest.raises(ValueError, match="the context holds 256 tokens, not 257"):
        engine.forward([1] * 257)
    engine.forward([1] * 250)
    for ids, parents, message in (
        ([1], [0], "parent must come before"),
        ([1, 1], [-1, 1], "parent must come before"),
        ([1, 1], [-1], "too few nodes"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.forward(ids, 1, parents)
    for length, node in ((249, 1), (2**64 - 1, 1)):
        with pytest.raises(ValueError, match="kept nodes"):
            engine.keep(length, [node])


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            hf.GPTNeoXConfig(
                vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
            ),
            "architecture gpt_neox",
        ),
        (hf.LlamaConfig(**SIZE, hidden_act="relu"), "activation is relu"),
        (
            hf.LlamaConfig(**SIZE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rotary embedding is dynamic",
        ),
        (hf.Gemma3TextConfig(**SIZE, head_dim=16, attn_logit_softcapping=5.0, **SLIDING), "scores are capped"),
        (hf.LlamaConfig(**SIZE, mlp_bias=True), "has a bias in mlp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_run(config: hf.PretrainedConfig, why: str, tmp_path: Path) -> None:
    saved(config, tmp_path)
    with pytest.raises(UserError, match=why):
        Engine(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": "ten"}, "describes no model that can be built"),
        ("intermediate_size", -1, "intermediate_size -1 in config.json"),
        ("num_key_value_heads", -62, "num_key_value_heads -62 in config.json"),
        ("rms_norm_eps", -1e-6, "rms_norm_eps -1e-06 in config.json"),
        ("dtype", [], "cannot be read"),
    ],
)
def test_a_config_that_describes_no_model(field: str, value: object, said: str, tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        Engine(tmp_path)


def test_memory_is_checked_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(FAMILIES["llama"], tmp_path)
    monkeypatch.setattr(native_models, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"needs .* of memory, and .* are free"):
        Engine(tmp_path)


def test_without_the_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(FAMILIES["llama"], tmp_path)
    monkeypatch.setattr(native, "_module", lambda: (None, "no module named _native"))
    assert not native.available()
    with pytest.raises(UserError, match="the native runtime was not built"):
        Engine(tmp_path)
    assert checkpoint.load(tmp_path) is not None
