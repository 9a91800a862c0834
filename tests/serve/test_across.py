"""A server whose drafter has another tokenizer: answers are the target's, and it drafts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sparsedraft
from across import small
from served import serving
from sparsedraft.base.errors import UserError
from sparsedraft.serve.options import ServeOptions
from tokens import built
from transformers_server import ASKED


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter with a tokenizer and a chat template of its own."""
    folder, tokenizer = tmp_path_factory.mktemp("other") / "other", built("byte-level")
    small(tokenizer, 1).save_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("uag", ["realign", "intersection"])
def test_answers_are_the_targets(talker: Path, other: Path, uag: str) -> None:
    options = ServeOptions(target=str(talker), drafter=(str(other), "lookup"), uag=uag, parallel=2, served_name="t")
    for served in serving(options):

        def ask(job: tuple[str, str], served=served) -> tuple[str, int]:
            text, drafter = job
            body = {"model": "t", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12,
                    "draft_model": drafter, "num_draft_tokens": 3, "include_metrics": True}  # fmt: skip
            status, answer = served.post("/v1/chat/completions", body)
            assert status == 200, answer
            (told,) = answer["metrics"]["speculative_decoding"]
            return answer["choices"][0]["message"]["content"], told["num_draft_tokens"]

        jobs = [(text, drafter) for text in ASKED[:4] for drafter in ("other", "lookup", "none")]
        with ThreadPoolExecutor(len(jobs)) as pool:
            answers = [*pool.map(ask, jobs)]
        assert [text for text, _ in answers] == [
            sparsedraft.generate(talker, text, max_new_tokens=12).text for text, _ in jobs
        ]
        assert sum(drafted for (_, drafter), (_, drafted) in zip(jobs, answers, strict=True) if drafter == "other") > 8
        prompt = served.service.pairs["other"].prompt_pair([5], [{"role": "user", "content": "hello"}])
        assert prompt.drafter == built("byte-level")("[user] hello\n")["input_ids"]


def test_it_may_be_forbidden(talker: Path, other: Path) -> None:
    with pytest.raises(UserError, match="different tokenizers"):
        next(serving(ServeOptions(target=str(talker), drafter=str(other), uag="off")))
