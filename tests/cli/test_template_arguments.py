"""Arguments of chat templates, such as `enable_thinking`: in every command, in what is stored, and to a server."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import inside
from faults import Proxy, proxied
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import template_args
from sparsedraft.layerwise import calibration
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.recipe import reading as recipes
from sparsedraft.run import run_recipe
from sparsedraft.text import dataset
from tiny import TEMPLATE

# as Qwen3's: unless it is told not to, the model may think before it answers
THINKER = TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
HI = [{"role": "user", "content": "hi"}]
OFF = ["--template-arg", "enable_thinking=false"]


@pytest.fixture(scope="module")
def thinker(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("thinker") / "model")
    (folder / "chat_template.jinja").write_text(THINKER)
    return folder


@pytest.fixture(scope="module")
def own(thinker: Path) -> PreTrainedTokenizerFast:
    return checkpoint.load_tokenizer(thinker)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n{"prompt": "hello there"}\n')
    return str(tmp_path / "p.jsonl")


@pytest.fixture
def call(monkeypatch, capsys):
    """A command in this process: its result, or with `code` what it says on stderr."""

    def run(*words: object, code: int = 0):
        ended = inside.call(monkeypatch, *words)
        said = capsys.readouterr()
        assert ended == code, said.err
        return " ".join(said.err.split()) if code else json.loads(said.out.splitlines()[-1])

    return run


def expected(own: PreTrainedTokenizerFast, messages: list[dict[str, str]], **arguments: object) -> list[int]:
    """As transformers itself applies the template."""
    return own.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **arguments)


def test_values_are_json_where_they_are() -> None:
    found = template_args(["a=false", "b=3", "c=high", 'd="3"', "e=x=y", 'f={"g": [1]}', "h=", "i=NaN"])
    assert found == {"a": False, "b": 3, "c": "high", "d": "3", "e": "x=y", "f": {"g": [1]}, "h": "", "i": "NaN"}
    for wrong, message in ((["a"], "not of the form"), (["=1"], "not of the form"), (["a=1", "a=2"], "given twice")):
        with pytest.raises(UserError, match=message):
            template_args(wrong)


def test_the_template_gets_them_and_unknown_ones_are_refused(own, tokenizer) -> None:
    mine = templates.give(copy.deepcopy(own), {"enable_thinking": False})
    assert templates.chat_ids(mine, HI) == expected(own, HI, enable_thinking=False) != expected(own, HI)
    assert templates.chat_ids(own, HI) == expected(own, HI)
    templates.check(own, {"enable_thinking": True})
    for name, message in (
        ("enable_thought", "does not use it; it uses enable_thinking"),
        ("messages", "what the template gets from sparsedraft itself"),
        ("add_generation_prompt", "from sparsedraft itself"),
        ("eos_token", "from sparsedraft itself"),
        ("strftime_now", "from sparsedraft itself"),
    ):
        with pytest.raises(UserError, match=message):
            templates.check(own, {name: 1})
    with pytest.raises(UserError, match="takes no arguments"):
        templates.check(tokenizer, {"enable_thinking": True})


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if not tools %}{{ effort }}{% break %}{% endif %}{% endfor %}",
        "{% generation %}{{ effort }}{% endgeneration %}",
        "{% if effort is not defined %}{% set effort = 'low' %}{% endif %}{{ effort }}",
        "{% set effort = effort | default('low') %}{{ effort }}",
        "{% macro shown(m) %}{{ m }}{{ effort }}{% endmacro %}{{ shown(1) }}",
    ],
)
def test_a_variable_is_found_wherever_it_stands(tokenizer, template: str) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    templates.check(own, {"effort": "high"})
    assert "high" in own.decode(templates.chat_ids(templates.give(own, {"effort": "high"}), HI))


def test_distilled_rows_hold_them_and_plain_inputs_are_as_ever(call, own, thinker, source, tmp_path) -> None:
    words = ["distill", thinker, source, "--max-new-tokens", 4]
    assert call(*words, "--out", tmp_path / "off", *OFF)["template_args"] == {"enable_thinking": False}
    assert "template_args" not in call(*words, "--out", tmp_path / "plain")
    for name, arguments in (("off", {"enable_thinking": False}), ("plain", {})):
        for row in dataset.read(tmp_path / name):
            assert row["prompt_ids"] == expected(own, row["messages"][:-1], **arguments)
    noted, plain = (json.loads((tmp_path / n / "provenance.json").read_text())["inputs"] for n in ("off", "plain"))
    assert noted.pop("template_args") == {"enable_thinking": False} and noted == plain
    assert list(plain) == ["target", "prompts", "evaluation", "rules", "options"], "else old results are made again"
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / n / "tokenizer").iterdir()} for n in ("off", "plain"))
    assert one == other
    assert "changed: template_args" in call(*words, "--out", tmp_path / "off", code=2)


def test_rows_without_their_tokenizer_are_known_under_their_own_arguments(call, own, thinker, tmp_path) -> None:
    data = tmp_path / "data"
    call("distill", thinker, "demo:train", "--limit", 12, "--out", data, "--max-new-tokens", 12, *OFF)
    shutil.rmtree(data / "tokenizer")
    assert dataset.same_tokenizer(data, own) and not templates.given(own)
    found, rows = [*dataset.samples(data, own)], dataset.read(data)
    assert [sample.prompt_ids for sample in found] == [row["prompt_ids"] for row in rows]
    assert rows[0]["prompt_ids"] == expected(own, rows[0]["messages"][:-1], enable_thinking=False)
    assert "leave it out" in call("prune", thinker, "--calibration", data, "--out", tmp_path / "out", *OFF, code=2)


def test_generate_and_eval_show_the_target_what_they_say(call, own, thinker, source, tmp_path) -> None:
    new = ["--max-new-tokens", 4]
    for options, arguments in ((OFF, {"enable_thinking": False}), ([], {})):
        found = call("generate", thinker, "--prompt", "hi", *new, *options)
        assert found["prompt_tokens"] == len(expected(own, HI, **arguments))
        out = tmp_path / f"eval{len(options)}"
        call("eval", thinker, f"a={thinker}", "--prompts", source, "--k", 1, *new, "--out", out, *options)
        rows = [row for line in (out / "answers.jsonl").read_text().splitlines() for row in json.loads(line)["rows"]]
        assert sorted(row["prompt_ids"] for row in rows) == sorted(
            expected(own, [{"role": "user", "content": text}], **arguments) for text in ("hi", "hello there")
        )
    assert "does nothing under --raw" in call("generate", thinker, "--prompt", "hi", "--raw", *OFF, code=2)
    assert "--template-arg is about drafting" in call("eval", thinker, "a", "--tasks", "x", *OFF, code=2)


def test_calibration_and_training_where_a_template_is_applied(call, own, thinker, source, tmp_path, capsys) -> None:
    arguments = {"enable_thinking": False}
    ids = calibration.sequences(source, calibration.tokenizer_for(thinker, source, arguments), 1000, 1000, 0)
    both = [expected(own, [{"role": "user", "content": text}], **arguments) for text in ("hi", "hello there")]
    assert ids.numel() == sum(map(len, both))
    data, out = tmp_path / "data", ["--out", tmp_path / "no"]
    call("distill", thinker, source, "--max-new-tokens", 4, "--out", data, *OFF)
    for words in (["prune", thinker, "--calibration", data], ["finetune", thinker, data]):
        assert "no template is applied to it again" in call(*words, *out, *OFF, code=2)
    assert "does not use it" in call("prune", thinker, "--calibration", source, *out, "--template-arg", "x=1", code=2)
    other = copy.deepcopy(own)
    other.add_tokens(["question"])
    dataset.check_rendered(data, own, {})
    assert "was written under" not in capsys.readouterr().err
    dataset.check_rendered(data, other, {})
    assert "was written under the template arguments enable_thinking=false" in capsys.readouterr().err
    again = [*dataset.samples(data, templates.give(other, arguments))]
    assert [s.prompt_ids for s in again] == [expected(other, row["messages"][:-1], **arguments)
                                             for row in dataset.read(data)]  # fmt: skip


def test_a_server_is_told(call, talker: Path, served: str, source: str, tmp_path: Path) -> None:
    target = shutil.copytree(talker, tmp_path / "model")
    (target / "chat_template.jinja").write_text(THINKER)
    server = ["--engine", "endpoint", "--served-name", "tiny/talker", "--max-new-tokens", 4]
    proxy: Proxy
    with proxied(served) as proxy:
        call("distill", target, source, "--url", proxy.url, "--out", tmp_path / "out", *server, *OFF)
        assert [c.json["chat_template_kwargs"] for c in proxy.posts()] == [{"enable_thinking": False}] * 2


def test_a_whole_run(own, thinker: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = f"""
target: {thinker}
template_args: {{enable_thinking: false}}
distill: {{limit: 6, max_new_tokens: 4}}
drafters: [{{name: half, prune: {{tokens: 128, sequence_length: 64}}}}]
eval: {{k: [1], max_new_tokens: 4, limit: 2}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = recipes.read(tmp_path / "recipe.yaml")
    run_recipe(recipe, tmp_path / "out")
    for row in dataset.read(tmp_path / "out" / "distilled"):
        assert row["prompt_ids"] == expected(own, row["messages"][:-1], enable_thinking=False)
    inputs = json.loads((tmp_path / "out" / "eval" / "provenance.json").read_text())["inputs"]
    assert inputs["template_args"] == {"enable_thinking": False} and "template_args" not in inputs["options"]
    assert recipes.read(tmp_path / "out" / "recipe.yaml") == recipe
    (tmp_path / "recipe.yaml").write_text(text.replace("enable_thinking", "thinking"))
    with pytest.raises(UserError, match=r"thinking: the chat template .* it uses enable_thinking"):
        run_recipe(recipes.read(tmp_path / "recipe.yaml"), tmp_path / "no")
    assert not (tmp_path / "no").exists()
