"""`sparsedraft.generate` and the stages as functions: the texts are the target's own, streamed or whole."""

import json
from pathlib import Path

import pytest
import torch

import sparsedraft
from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.native import extension
from sparsedraft.native import model as native_models
from tiny import build_llama, build_tokenizer
from tokens import built

PROMPTS = ["how many apples are left?", "the quick brown fox"]
NEW = 24
OTHER = build_llama(1), build_tokenizer()  # its drafts are wrong nearly always
SAMPLED = {"temperature": 0.8, "top_k": 50, "seed": 3}


@pytest.fixture(scope="module")
def drafters(tiny_checkpoint: Path) -> dict[str, object]:
    """Every way to name a drafter: none, look-up, a folder, a model in memory, one of another tokenizer."""
    tokenizer = built("wordpiece")
    foreign = build_llama(2, layers=1, vocab_size=len(tokenizer))
    return {
        "none": None,
        "lookup": "lookup",
        "folder": tiny_checkpoint,
        "loaded": sparsedraft.LoadedModel.load(tiny_checkpoint),
        "in memory": OTHER,
        "another tokenizer": (foreign, tokenizer),
    }


DRAFTERS = ("none", "lookup", "folder", "loaded", "in memory", "another tokenizer")


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> list[list[int]]:
    """What transformers' own greedy loop writes."""
    model, tokenizer = build_llama(), build_tokenizer()
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(ids, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(ids))
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("runtime", ["auto", "transformers"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_is_transformers_own(name, runtime, drafters, tiny_checkpoint, expected) -> None:
    one = sparsedraft.generate(
        tiny_checkpoint, PROMPTS[0], drafter=drafters[name], k=4, max_new_tokens=NEW, runtime=runtime
    )
    several = sparsedraft.generate(
        tiny_checkpoint, PROMPTS, drafter=drafters[name], k=4, max_new_tokens=NEW, runtime=runtime
    )
    assert one.token_ids == expected[0] and [text.token_ids for text in several] == expected
    assert one.text == text_of(build_tokenizer(), expected[0])
    assert sum(one.accepted) + one.steps == NEW == len(one.token_ids) and one.finish_reason == "length"
    assert (max(one.drafted) > 0) == (name != "none") and one.mal == NEW / one.steps
    if name in ("folder", "loaded"):  # it drafts for itself
        assert one.accepted == one.drafted and one.steps == 5


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("drawing", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_is_the_whole_text(drawing, name, drafters, tiny_checkpoint) -> None:
    """Pieces of two prompts, decoded at once, put together by their prompt; the counts are those of the steps."""
    options = {"drafter": drafters[name], "k": 3, "max_new_tokens": NEW, "runtime": "transformers", **drawing}
    whole = sparsedraft.generate(tiny_checkpoint, PROMPTS, **options)
    pieces = [*sparsedraft.generate(tiny_checkpoint, PROMPTS, stream=True, **options)]
    for index, text in enumerate(whole):
        own = [piece for piece in pieces if piece.prompt == index]
        assert "".join(piece.text for piece in own) == text.text
        assert [piece.drafted for piece in own] == text.drafted and [piece.accepted for piece in own] == text.accepted
    assert len(pieces) == sum(text.steps for text in whole)


@pytest.mark.parametrize("name", ["folder", "in memory", "another tokenizer"])
def test_look_up_beside_a_model_writes_the_same_texts(name, drafters, tiny_checkpoint, expected) -> None:
    """Several prompts at once, by every policy; both sources draft."""
    sources = {}
    for policy in ("constant", "auto", "confidence", "bandit"):
        options = {"drafter": drafters[name], "k": 4, "policy": policy, "max_new_tokens": NEW, "lookup": True}
        texts = sparsedraft.generate(tiny_checkpoint, PROMPTS, **options)
        assert [text.token_ids for text in texts] == expected
        sources |= {step[0] is None: True for text in texts for step in text.by_step if step[1]}
    assert name == "folder" or sources == {True: True, False: True}, "the target itself is never behind look-up"


def test_a_stop_string_is_never_shown(tiny_checkpoint: Path) -> None:
    plain = sparsedraft.generate(tiny_checkpoint, PROMPTS[0], max_new_tokens=NEW)
    stop = plain.text[5:8]
    options = {"drafter": tiny_checkpoint, "max_new_tokens": NEW, "stop": [stop]}
    stopped = sparsedraft.generate(tiny_checkpoint, PROMPTS[0], **options)
    assert stopped.text == plain.text[: plain.text.find(stop)] and stopped.finish_reason == "stop"
    pieces = sparsedraft.generate(tiny_checkpoint, PROMPTS[0], stream=True, **options)
    assert "".join(piece.text for piece in pieces) == stopped.text


def test_no_prompts_are_no_texts(tiny_checkpoint: Path) -> None:
    assert sparsedraft.generate(tiny_checkpoint, []) == []
    assert [*sparsedraft.generate(tiny_checkpoint, [], stream=True)] == []


def test_the_end_of_a_model_in_memory_is_what_its_configs_and_tokenizer_say() -> None:
    model, tokenizer = build_llama(eos_token_id=[7, 9]), build_tokenizer()
    model.generation_config.eos_token_id = 11
    assert sparsedraft.LoadedModel.of(model, tokenizer).eos_ids == {2, 7, 9, 11}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.5}, "temprature is not a known option; did you mean temperature?"),
        ({"k": -1}, "--k -1 is not possible"),
        ({"policy": "best"}, "--policy best is not known"),
        ({"drafter": "/no/such/folder"}, "no such folder"),
        ({"tree": 2}, "--tree 2 needs a model that drafts"),
    ],
)
def test_what_is_not_possible_is_one_sentence(options, message, tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as raised:
        sparsedraft.generate(tiny_checkpoint, "x", **options)
    assert "\n" not in str(raised.value)


def test_template_arguments_belong_to_the_loading_of_a_model() -> None:
    with pytest.raises(UserError, match="where a model is loaded"):
        sparsedraft.generate(OTHER, "x", template_args={"a": 1})


def test_stages_are_functions_of_their_options(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`pack` and `inspect` write and return what the commands do; what was packed writes a text."""
    packed = sparsedraft.pack(sparsedraft.PackOptions(model=str(tiny_checkpoint), out=tmp_path / "packed"))
    assert json.loads(json.dumps(packed)) == packed
    shown = sparsedraft.inspect(sparsedraft.InspectOptions(checkpoint=str(tmp_path / "packed")))
    assert shown["linears"]
    text = sparsedraft.generate(tiny_checkpoint, PROMPTS[0], drafter=tmp_path / "packed", k=2, max_new_tokens=NEW)
    assert sum(text.accepted) > NEW / 3, "int8 of the target itself"
    with pytest.raises(UserError, match="--weights int3 is not known"):
        sparsedraft.PackOptions(model="m", out=tmp_path, weights="int3")


def test_every_public_name_is_there() -> None:
    for name in sparsedraft.__all__:
        assert getattr(sparsedraft, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing_here"):
        sparsedraft.nothing_here  # noqa: B018


def test_what_is_no_prompt_or_model_is_refused_in_one_sentence(tiny_checkpoint: Path) -> None:
    model, tokenizer = OTHER
    for prompt in (None, 42):
        with pytest.raises(UserError, match="give a text or a list of texts"):
            sparsedraft.generate(tiny_checkpoint, prompt)
    for wrong in (model, (model,), (tokenizer, model), 3):
        with pytest.raises(UserError, match="is no model here: give a folder"):
            sparsedraft.generate(wrong, "hello")
        with pytest.raises(UserError, match="is no model here: give a folder"):
            sparsedraft.generate(tiny_checkpoint, "hello", drafter=wrong)


def test_options_of_a_group_may_stand_beside_the_others() -> None:
    given = {"target": "t", "prompts": "demo:train", "out": "o"}
    flat = sparsedraft.DistillOptions(**given, near_duplicates=0.5, min_answer_tokens=2)
    assert flat == sparsedraft.DistillOptions(**given, rules={"near_duplicates": 0.5, "min_answer_tokens": 2})
    assert flat == sparsedraft.DistillOptions(**given, rules={"near_duplicates": 0.5}, min_answer_tokens=2)
    assert sparsedraft.DistillOptions(**given, rules=flat.rules, min_answer_tokens=3).rules.near_duplicates == 0.5
    with pytest.raises(UserError, match="near-duplicates 2 is not possible: give 0 to 1"):
        sparsedraft.DistillOptions(**given, near_duplicates=2)


@pytest.mark.skipif(not extension.is_built(), reason="the extension was not built")
@pytest.mark.parametrize("drafted", [False, True])
def test_prompts_whose_keys_and_values_do_not_fit_are_refused(
    drafted: bool, tiny_checkpoint: Path, monkeypatch
) -> None:
    """Before they are read: those of the target, and of the drafter, too."""
    loaded = sparsedraft.LoadedModel.load(tiny_checkpoint, runtime="native")
    assert loaded.native is not None
    pair = {"drafter": loaded if drafted else None, "max_new_tokens": 2}
    count = sparsedraft.generate(loaded, PROMPTS[0], **pair).prompt_tokens
    needed = count * loaded.native.cache_bytes_per_token * (2 if drafted else 1)
    monkeypatch.setattr(native_models, "available_memory", lambda: needed)
    sparsedraft.generate(loaded, PROMPTS[0], **pair)
    monkeypatch.setattr(native_models, "available_memory", lambda: needed - 1)
    with pytest.raises(UserError, match=rf"keys and values of {count} tokens need .* shorten the prompts"):
        sparsedraft.generate(loaded, PROMPTS[0], **pair)
