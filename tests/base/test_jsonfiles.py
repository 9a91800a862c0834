"""Side files of the wrong kind, type or depth: every command that reads one says so in a sentence, or does its work."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluations import RESULT
from inside import call
from sparsedraft.base import jsonfiles
from sparsedraft.base.errors import UserError
from sparsedraft.models.shards import write
from stages import distill, pack, prune

DEEP = "[" * 100_000
LEVELS = "[" * 300 + "]" * 300
WHOLE = ("", "{", "[]", '"x"', "null", "5", "1e999", DEEP, '{"a":' + LEVELS + "}", "\ufeff{}", '{"a": "\\ud800"}')
ODD: tuple[Any, ...] = ("abc", {}, [[]], None, -1, float("inf"), True, {"a": {"b": []}}, ["x", None])
FIELDS = {  # the known fields of each file
    "config.json": (
        "architectures", "model_type", "eos_token_id", "bos_token_id", "pad_token_id", "text_config", "vocab_size",
        "quantization_config", "num_hidden_layers", "hidden_size", "max_position_embeddings", "rope_parameters",
        "tie_word_embeddings", "dtype", "layer_types", "sliding_window", "auto_map", "num_attention_heads", "head_dim",
    ),
    "generation_config.json": ("eos_token_id", "pad_token_id", "temperature", "do_sample", "max_length"),
    "tokenizer_config.json": (
        "model_max_length", "chat_template", "added_tokens_decoder", "tokenizer_class", "eos_token", "pad_token",
        "additional_special_tokens", "extra_special_tokens", "model_input_names", "padding_side", "auto_map", "backend",
    ),
    "tokenizer.json": ("model", "added_tokens", "pre_tokenizer", "decoder", "version", "normalizer", "post_processor",
                       "truncation", "padding"),
    "special_tokens_map.json": ("eos_token", "pad_token", "additional_special_tokens"),
    "added_tokens.json": ("<|more|>",),
    "sparsity.json": ("pattern", "sparsity", "linears", "patterns"),
    "packed.json": ("format", "version", "weights", "linears"),
    "model.safetensors.index.json": ("weight_map", "metadata"),
    "result.json": ("rows", "target_tokens", "prompt_tokens", "finish_reasons", "dropped", "relative_errors"),
    "provenance.json": ("command", "inputs", "fingerprint", "seed"),
}  # fmt: skip
MODEL = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json",
         "added_tokens.json", "sparsity.json")  # fmt: skip
PROMPT = ("--raw", "--prompt", "the quick", "--max-new-tokens", 2)


def trials(file: Path, commands: list[tuple]) -> Iterator[tuple[str, list[tuple]]]:
    """(text in place of `file`, the commands that meet it).

    What is no object meets every command. A field with an odd value meets one of them, in turn: every field and every
    value meets each command.
    """
    for text in WHOLE:
        yield text, commands
    fields = json.loads(file.read_text()) if file.exists() else {}
    for row, name in enumerate(FIELDS[file.name]):
        for column, value in enumerate(ODD):
            yield json.dumps({**fields, name: value}), [commands[(row + column) % len(commands)]]


@pytest.fixture(scope="module")
def place(tiny_llama, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer model, sharded and packed and pruned ones of it, and its distilled data."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(layers=1, hidden_size=16, intermediate_size=32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    prune(str(folder / "model"), folder / "pruned", "demo:train", pattern="2:4", tokens=64, sequence_length=32)
    pack(str(folder / "model"), folder / "packed")
    distill(str(folder / "model"), "demo:train", folder / "data", limit=8, max_new_tokens=2)
    from sparsedraft.models.shards import Shards

    shutil.copytree(folder / "model", folder / "sharded")
    source = Shards(folder / "model")
    (folder / "sharded" / "model.safetensors").unlink()
    write(folder / "sharded", {name: (source, name) for name in source.files}, limit=1 << 12)
    return folder


def tried(file: Path, commands: list[tuple], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every damage to `file`, met by `commands`: done, or one sentence."""
    whole = file.read_bytes() if file.exists() else None
    refused, wrong = 0, []
    for text, met in list(trials(file, commands)):
        file.write_text(text, errors="surrogatepass")
        for words in met:
            shutil.rmtree(file.parent.parent / "out", ignore_errors=True)
            try:
                code = call(patch, *words)
            except BaseException as error:
                wrong.append(f"{words[0]}: {error!r:.200} of {_where(file, text)}")
                continue
            said = capsys.readouterr().err
            if code not in (0, 2) or (code == 0) != ("error:" not in said) or len(said) > 3000:
                wrong.append(f"{words[0]}: {code}, {said[:500]} of {_where(file, text)}")
            refused += code == 2
    file.unlink() if whole is None else file.write_bytes(whole)
    assert not wrong, "\n".join(wrong)
    assert refused >= 8


def _where(file: Path, text: str) -> str:
    """What was damaged."""
    return f"{file.name} = {text[:60]} ... {text[-60:]}"


@pytest.mark.parametrize("name", MODEL)
def test_beside_a_model(name: str, place: Path, monkeypatch, capsys) -> None:
    model = place / ("pruned" if name == "sparsity.json" else "model")
    commands: list[tuple] = [("generate", model, *PROMPT, "--runtime", "transformers")]
    if name in ("config.json", "sparsity.json"):
        commands += [("inspect", model), ("pack", model, "--out", place / "out")]
    tried(model / name, commands, monkeypatch, capsys)


def test_the_rest_of_the_commands(place: Path, monkeypatch, capsys) -> None:
    """One damage of each file, in the commands that take seconds."""
    small = ("--tokens", 64, "--sequence-length", 32, "--out", place / "out")
    model, data = place / "model", place / "data"
    commands: list[tuple] = [
        ("distill", model, "demo:train", "--limit", 1, "--max-new-tokens", 1, "--out", place / "out"),
        ("prune", model, "--calibration", "demo:train", *small),
        ("drop-layers", model, "--calibration", "demo:train", "--layers", 1, *small),
        ("finetune", model, data, *small),
        ("eval", model, model, "--prompts", "demo:eval", "--limit", 1, "--max-new-tokens", 1),
    ]
    for name in MODEL[:4]:
        whole = (model / name).read_bytes()
        for text in ("[]", '{"a":' + DEEP, "{"):
            (model / name).write_text(text)
            for words in commands:
                assert call(monkeypatch, *words) == 2, (words, name)
                assert f"{name} cannot be read" in " ".join(capsys.readouterr().err.split()), (words, name)
        (model / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["packed.json", "config.json"])
def test_in_a_packed_folder(name: str, place: Path, monkeypatch, capsys) -> None:
    packed = place / "packed"
    tried(packed / name, [("generate", packed, *PROMPT), ("inspect", packed)], monkeypatch, capsys)


def test_the_index_of_shards(place: Path, monkeypatch, capsys) -> None:
    sharded = place / "sharded"
    tried(sharded / "model.safetensors.index.json", [("inspect", sharded)], monkeypatch, capsys)


@pytest.mark.parametrize("name", ["result.json", "provenance.json"])
def test_in_a_data_folder(name: str, place: Path, monkeypatch, capsys) -> None:
    model, data = place / "model", place / "data"
    commands = [
        ("pack", model, "--out", place / "out", "--head-tokens", 100, "--head-data", data),
        ("distill", model, "demo:train", "--limit", 8, "--max-new-tokens", 2, "--out", data),
    ]
    tried(data / name, commands, monkeypatch, capsys)


@pytest.mark.parametrize("name", ["result.json", "provenance.json"])
def test_in_a_run(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    (run / "eval" / "result.json").write_text(json.dumps(RESULT))
    (run / "eval" / "provenance.json").write_text(json.dumps({"command": "eval", "inputs": {}}))
    file, top = run / "eval" / name, json.loads((run / "eval" / name).read_text())
    inside = [("drafters", 0, field) for field in RESULT["drafters"][0]] if name == "result.json" else []
    for path in [(field,) for field in top] + inside:
        for value in (*ODD, "gone"):
            changed = json.loads(json.dumps(top))
            at = changed
            for step in path[:-1]:
                at = at[step]
            if value == "gone":
                del at[path[-1]]
            else:
                at[path[-1]] = value
            file.write_text(json.dumps(changed))
            assert call(monkeypatch, "report", run) in (0, 2), (path, value)
    for text in WHOLE:
        file.write_text(text, errors="surrogatepass")
        assert call(monkeypatch, "report", run) == 2
        assert f"{name} cannot be read" in " ".join(capsys.readouterr().err.split()), text[:99]


def test_what_the_reader_takes(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for depth, good in ((99, True), (101, False), (990, False), (100_000, False)):
        file.write_text('{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}")
        if good:
            assert "a" in jsonfiles.read_object(file)
        else:
            with pytest.raises(UserError, match="nested too deep"):
                jsonfiles.read_object(file)
