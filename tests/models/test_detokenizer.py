"""One text of tokens: stop strings are looked for in what is shown."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsedraft.models.tokenizers.detokenizer import Detokenizer, text_of
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.stages.generate.texts import TextStream

WORDS = ["<unk>", "</s>", "well", ",", "it", "is", "done", ".", "thank", "you", "!"]


@pytest.fixture
def cleaning() -> PreTrainedTokenizerFast:
    """A tokenizer whose own text has no space before a comma, and whose tokens' text has one."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", clean_up_tokenization_spaces=True
    )
    assert tokenizer.decode([2, 3, 4]) == "well, it" and text_of(tokenizer, [2, 3, 4]) == "well , it"
    return tokenizer


@pytest.mark.parametrize(
    ("stop", "written"), [("l , i", "wel"), (" ,", "well"), ("l, i", None), ("it is done .", None)]
)
def test_a_stop_string_stops_where_the_shown_text_has_it(
    cleaning: PreTrainedTokenizerFast, stop: str, written: str | None
) -> None:
    ids = cleaning("well , it is done ! thank you .")["input_ids"]
    shown = text_of(cleaning, ids)
    assert Detokenizer(cleaning).text(ids) == shown == "well , it is done ! thank you ."
    stops = Stops(cleaning, [stop])
    at = stops.first(ids, len(ids), len(ids))
    assert (at is None) == (written is None) == (stop not in shown)
    kept = ids if at is None else ids[: at + 1]
    stream = TextStream(cleaning, stops)
    pieces = [stream.add(Step([], 0, [token])) for token in kept]
    assert "".join(pieces) + stream.rest() == stream.text == (shown if written is None else written)


def test_special_tokens_are_written_out_when_asked_for(cleaning: PreTrainedTokenizerFast) -> None:
    assert text_of(cleaning, [2, 1]) == "well" and text_of(cleaning, [2, 1], special=True) == "well </s>"
