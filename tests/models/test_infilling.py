"""Prompts for the middle of a text: the tokens of every family in their order, and texts that stay text."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.models.tokenizers.infilling import FORMS, Form, Infilling
from tokens import FAITHFUL, TEXTS, built

ORDERS = ["PSM", "PSM", "PSM", "PSM", "PSM", "SP"]  # of FORMS: prefix, suffix, middle; Codestral's suffix comes first
PIECES = ["x", " ", "\n", "<", "|", "fim", "☺", *(token for form in FORMS for token in form.tokens), " <PRE>", "</s>"]


def with_tokens(kind: str, form: Form, special: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind that has the tokens of `form`, and one that pads."""
    found = copy.deepcopy(built(kind))
    found.add_tokens([*form.tokens, "<|fim_pad|>"], special_tokens=special)
    return found


def parts(tokenizer: PreTrainedTokenizerFast, form: Form, ids: list[int]) -> dict[str, str]:
    """The text behind each control token of a prompt, by the token, in their order; "" is what stands before all."""
    names = {tokenizer.convert_tokens_to_ids(token): token for token in form.tokens}
    found: dict[str, list[int]] = {"": []}
    for number in ids:
        if number in names:
            assert names[number] not in found, "each of them stands there once"
            found[names[number]] = []
        else:
            [*found.values()][-1].append(number)
    lead = tokenizer("x", add_special_tokens=False)["input_ids"]  # some write a space only inside a text
    return {name: text_of(tokenizer, [*lead, *of]).removeprefix("x") for name, of in found.items()}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", FAITHFUL)
@pytest.mark.parametrize(("form", "order"), zip(FORMS, ORDERS, strict=True), ids=lambda of: str(of)[:24])
def test_both_texts_stand_where_the_family_has_them(form: Form, order: str, kind: str, special: bool) -> None:
    tokenizer = with_tokens(kind, form, special)
    prefix, suffix = TEXTS["code"], "\n" + TEXTS["french"]
    found = parts(tokenizer, form, Infilling(tokenizer).ids(prefix, suffix))
    tokens = {"P": form.prefix, "S": form.suffix, "M": form.middle}
    assert [*found] == ["", *([tokens[one] for one in order] if order == "PSM" else [form.suffix, form.prefix])]
    assert found[form.prefix].removeprefix(" ") == prefix and found[form.suffix] == suffix
    assert tokenizer("")["input_ids"] == Infilling(tokenizer).ids("", "y")[: len(tokenizer("")["input_ids"])]


@pytest.mark.parametrize("kind", FAITHFUL)
@pytest.mark.parametrize("form", FORMS, ids=str)
@given(prefix=st.lists(st.sampled_from(PIECES)).map("".join), suffix=st.lists(st.sampled_from(PIECES)).map("".join))
def test_what_looks_like_a_control_token_is_text(kind: str, form: Form, prefix: str, suffix: str) -> None:
    tokenizer = _cached(kind, form)
    ids = Infilling(tokenizer).ids(prefix, suffix)
    found = parts(tokenizer, form, ids)  # which finds each token once
    controls = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("<|fim_pad|>")}
    controls -= {tokenizer.convert_tokens_to_ids(token) for token in form.tokens}
    assert controls.isdisjoint(ids[len(tokenizer("")["input_ids"]) :])
    spelt = found[form.suffix].replace("▁", " ") if kind != "byte-level" else found[form.suffix]
    assert spelt == (suffix.replace("▁", " ") if kind != "byte-level" else suffix)


_BUILT: dict[tuple[str, Form], PreTrainedTokenizerFast] = {}


def _cached(kind: str, form: Form) -> PreTrainedTokenizerFast:
    if (kind, form) not in _BUILT:
        _BUILT[kind, form] = with_tokens(kind, form, True)
    return _BUILT[kind, form]


def test_the_middle_ends_with_what_the_family_ends_it_with() -> None:
    ends = Infilling(with_tokens("byte-level", FORMS[0], False)).ends
    assert {"<|fim_pad|>", *FORMS[0].tokens} <= {*ends} and "<file_sep>" not in ends


def test_a_model_without_such_tokens_is_told_so() -> None:
    with pytest.raises(UserError, match="no tokens to fill in the middle"):
        Infilling(built("llama"))
    half = copy.deepcopy(built("byte-level"))
    half.add_tokens(["<|fim_prefix|>", "<|fim_suffix|>"])
    with pytest.raises(UserError, match="leave the suffix out"):
        Infilling(half)
