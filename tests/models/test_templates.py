"""Chat templates: transformers' own tokens, on a day that stands still."""

import copy
import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_of_turn
from sparsedraft.stages.distill import magpie, ray_workers
from stages import distill, evaluate_to
from tiny import TEMPLATE

HI = [{"role": "user", "content": "hi"}]
CLOCK = "{{ strftime_now('%A, %Y-%m-%d') }}|" + TEMPLATE  # as Mistral's, SmolLM3's and gpt-oss' do
DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}|" + TEMPLATE  # Llama 3.2's


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    found = copy.deepcopy(tokenizer)
    found.chat_template = template
    return found


@pytest.mark.parametrize(("template", "day"), [(CLOCK, "Friday, 2024-07-26"), (DATED, "26 Jul 2024")])
def test_the_day_is_the_same_on_every_day(tokenizer, template: str, day: str) -> None:
    own = with_template(tokenizer, template)
    for generation_prompt in (True, False):
        shown = own.decode(templates.chat_ids(own, HI, generation_prompt=generation_prompt))
        plain = tokenizer.apply_chat_template(HI, tokenize=False, add_generation_prompt=generation_prompt)
        assert shown == f"{day}|{plain}"
    assert magpie.header(own)[0] == f"{day}|<|im_start|>user\n"
    assert end_of_turn(own) == [2]


def test_a_template_without_extras_gives_transformers_own_tokens(tokenizer) -> None:
    chat = [{"role": "system", "content": "s"}, *HI, {"role": "assistant", "content": "yo"}, *HI]
    for generation_prompt in (True, False):
        own = tokenizer.apply_chat_template(chat, add_generation_prompt=generation_prompt, return_dict=False)
        assert templates.chat_ids(tokenizer, chat, generation_prompt=generation_prompt) == own


def test_a_servers_day_is_stored_with_the_rows(talker: Path, served: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "how many apples are left?"}\n')
    target = shutil.copytree(talker, tmp_path / "model")
    (target / "chat_template.jinja").write_text(CLOCK)
    asked = {"engine": "endpoint", "url": served, "served_name": "tiny/talker", "max_new_tokens": 8}
    result = distill(str(target), str(tmp_path / "p.jsonl"), tmp_path / "out", **asked)
    assert result["template_dates"] == {date.today().isoformat(): 1}
    assert "template_dates" not in distill(str(talker), str(tmp_path / "p.jsonl"), tmp_path / "plain", **asked)
    own = {"k": (1,), "simulate": True, "url": served, "served_name": "tiny/talker", "max_new_tokens": 8}
    evaluate_to(tmp_path / "eval", str(target), [("a", str(talker))], str(tmp_path / "p.jsonl"), own)
    (unit,) = (tmp_path / "eval" / "answers.jsonl").read_text().splitlines()
    assert [row["template_date"] for row in json.loads(unit)["rows"]] == [date.today().isoformat()]


def test_the_day_is_told_whoever_asks_the_server(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Ray's workers say on their consoles is seen by nobody."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "how many apples are left?"}\n')
    target = shutil.copytree(talker, tmp_path / "model")
    (target / "chat_template.jinja").write_text(CLOCK)
    monkeypatch.setattr(ray_workers, "run_with_ray", lambda *args: iter(()))
    asked = {"engine": "endpoint", "url": "http://127.0.0.1:9/v1", "served_name": "m", "workers": 2}
    with pytest.raises(UserError, match="not one row is left"):
        distill(str(target), str(tmp_path / "p.jsonl"), tmp_path / "out", **asked)
    said = " ".join(capsys.readouterr().err.split())
    assert f"answers are of {date.today().isoformat()}, while prompts are stored" in said
