"""What a family can do is found out, whatever its config calls it; it writes as transformers does, or is refused."""

from pathlib import Path

import pytest
import torch
import transformers as hf

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, miniature
from sparsedraft.models.decoder import context_length
from sparsedraft.text.dataset import read
from sparsedraft.writers.transformers.abilities import Abilities, abilities
from stages import distill, evaluate_to, generate
from sweep_families import sweep
from tiny import build_tokenizer

# by family: what it is refused, of the ways to decode
ONE_BY_ONE = {"decoded together", "drafted together", "trees"}
ALONE = {*ONE_BY_ONE, "drafted", "drafted by itself"}
FAMILIES = {
    "cohere2": set(),  # windows on most layers
    "llama4_text": ONE_BY_ONE,  # chunks
    "gpt_neo": ONE_BY_ONE,  # windows in masks of its own
    "mamba": ALONE,
    "lfm2": ALONE,
    "recurrent_gemma": ALONE,
    "falcon_h1": ALONE,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_writes_as_transformers_does_or_is_refused(family: str) -> None:
    found = sweep(family)
    assert {way for way, result in found.items() if result.startswith("refused: ")} == FAMILIES[family], found
    assert all(result == "equal" for way, result in found.items() if way not in FAMILIES[family]), found


def test_a_wide_window_is_tried_as_a_narrow_one() -> None:
    """Of thousands of tokens, which no trial on the model itself would reach."""
    size = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    sizes = {**size, "intermediate_size": 64, "intermediate_size_mlp": 64, "num_local_experts": 2}
    chunked = hf.Llama4TextConfig(**sizes, num_key_value_heads=2, attention_chunk_size=8192, pad_token_id=0)
    model = hf.AutoModelForCausalLM.from_config(chunked).eval()
    assert Abilities(model).takes_masks, "nothing is seen of the chunks on a short text"
    assert abilities(model).takes_back and not abilities(model).takes_masks


def test_a_context_of_no_length_is_no_limit() -> None:
    model = hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8))
    assert model.config.max_position_embeddings == -1 and context_length(model) is None


def test_what_can_not_be_built_small_is_tried_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("sizes that do not fit")

    monkeypatch.setattr("sparsedraft.writers.transformers.abilities.shrunk", refuse)
    size = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert abilities(hf.LlamaForCausalLM(hf.LlamaConfig(**size, **heads)).eval()).takes_masks
    windowed = hf.MistralForCausalLM(hf.MistralConfig(**size, **heads, sliding_window=64)).eval()
    assert not abilities(windowed).takes_back, "nothing is known of what lies beyond the window"


@pytest.fixture(scope="module", params=["mamba", "lfm2"])
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that cannot take tokens back."""
    size = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "eos_token_id": 2}
    config = {
        "mamba": lambda: hf.MambaConfig(**size, state_size=4, bos_token_id=None, pad_token_id=0),
        "lfm2": lambda: hf.Lfm2Config(
            **size, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
            bos_token_id=None, pad_token_id=0,
        ),
    }[request.param]()  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    model = miniature.build(hf.AutoModelForCausalLM.from_config(config).__class__, config)
    checkpoint.save(model, build_tokenizer(), folder)
    return folder


def expected(folder: Path, text: str, new: int) -> list[int]:
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = build_tokenizer()(text, return_tensors="pt")["input_ids"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return made[0, ids.shape[1] :].tolist()


def generated(folder: Path, asked: list[str], drafter: str | None = None) -> dict:
    return generate(
        str(folder), asked, drafter=drafter, k=3 if drafter else None, policy="constant", uag="auto", tree=1,
        max_new_tokens=12, stop=[], raw=True, stats=False, seed=0, device="cpu", dtype="float32",
    )  # fmt: skip


def test_generate_writes_with_it_and_refuses_drafts(stateful: Path, tiny_checkpoint: Path) -> None:
    asked = ["the quick brown fox jumps over", "seven"]
    found = generated(stateful, asked)
    tokenizer = build_tokenizer()
    texts = [tokenizer.decode(expected(stateful, text, 12), skip_special_tokens=True) for text in asked]
    assert [answer["text"] for answer in found["answers"]] == texts
    for drafter in (str(tiny_checkpoint), "lookup"):
        with pytest.raises(UserError, match=r"no token can be taken back, so it cannot verify drafts"):
            generated(stateful, asked[:1], drafter)
    with pytest.raises(UserError, match=r"no token can be taken back, so it cannot draft: choose another drafter"):
        generated(tiny_checkpoint, asked[:1], str(stateful))


def test_distill_writes_with_it(stateful: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the fox"}\n{"prompt": "how many apples are left?"}\n')
    distill(str(stateful), str(tmp_path / "prompts.jsonl"), tmp_path / "out", max_new_tokens=8)
    rows = read(tmp_path / "out")
    assert len(rows) == 2
    for row in rows:
        ids = torch.tensor([row["prompt_ids"]])
        model = hf.AutoModelForCausalLM.from_pretrained(stateful).eval()
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert made[0, ids.shape[1] :].tolist() == row["answer_ids"]


def test_eval_says_so_before_the_targets_work(stateful: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"k": [2], "max_new_tokens": 8, "limit": 2}
    drafters = [("tiny", str(tiny_checkpoint))]
    with pytest.raises(UserError, match="cannot verify drafts: give --simulate"):
        evaluate_to(tmp_path / "a", str(stateful), drafters, "demo:eval", dict(**options))
    with pytest.raises(UserError, match="cannot draft: choose another drafter"):
        evaluate_to(tmp_path / "b", str(tiny_checkpoint), [("it", str(stateful))], "demo:eval", dict(**options))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
