"""The command line: its contract, and one clear sentence with exit code 2 for every mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from inside import call
from places import ROOT
from sparsedraft import cli

COMMANDS = {
    "run": {"--out", "--overwrite"},
    "plan": {"--gflops"},
    "distill": {
        "--out",
        "--mode",
        "--max-new-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--samples",
        "--seed",
        "--device",
    },
    "prune": {
        "--out",
        "--calibration",
        "--pattern",
        "--sparsity",
        "--method",
        "--allocation",
        "--refine",
        "--tokens",
        "--seed",
        "--dtype",
    },
    "drop-layers": {"--out", "--calibration", "--layers", "--match-macs", "--seed", "--device", "--dtype"},
    "finetune": {
        "--out",
        "--loss",
        "--nll-weight",
        "--teacher",
        "--on-policy",
        "--feature-teacher",
        "--feature-weight",
        "--quantize",
        "--reselect-every",
        "--reselect-share",
        "--tokens",
        "--learning-rate",
        "--gradient-checkpointing",
        "--patience",
        "--save-every",
        "--seed",
        "--device",
        "--dtype",
    },
    "eval": {"--prompts", "--k", "--temperature", "--simulate", "--out", "--seed", "--device", "--dtype", "--runtime"},
    "advise": {"--prompts", "--limit", "--max-new-tokens", "--out", "--temperature", "--runtime", "--cache"},
    "generate": {
        "--prompt",
        "--drafter",
        "--lookup",
        "--k",
        "--stats",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--device",
        "--runtime",
    },
    "race": {"--prompt", "--k", "--max-new-tokens", "--replay", "--runtime"},
    "serve": {
        "--drafter",
        "--lookup",
        "--k",
        "--host",
        "--port",
        "--api-key",
        "--parallel",
        "--queue",
        "--served-name",
    },
    "pack": {"--out", "--weights", "--head-tokens", "--head-data", "--overwrite"},
    "export": {"--gguf", "--out", "--overwrite"},
    "report": {"--overwrite"},
    "inspect": set(),
}


def test_commands_and_options_are_a_contract() -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name, wanted in COMMANDS.items():
        options = {o for parameter in commands[name].params for o in parameter.opts}
        assert wanted <= options, name
        for parameter in commands[name].params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stages import prune

    out = tmp_path_factory.mktemp("half") / "half"
    prune(str(tiny_checkpoint), out, "demo:train", tokens=512, sequence_length=64)
    return out


def test_generate_streams_the_same_text_with_and_without_a_drafter(
    monkeypatch, capsys, tiny_checkpoint: Path, half: Path
) -> None:
    seen = []
    drafting = ("--drafter", half, "--k", 3, "--stats")
    for extra in ((), drafting, (*drafting, "--lookup")):
        arguments = ("generate", tiny_checkpoint, "--prompt", "hello", "--max-new-tokens", 24, *extra)
        assert call(monkeypatch, *arguments) == 0
        out = capsys.readouterr().out
        result = json.loads(out.splitlines()[-1])
        assert out == result["text"] + "\n" + out.splitlines()[-1] + "\n", "the text streams to stdout, then the JSON"
        seen.append(result)
    plain, drafted, both = seen
    assert plain["text"] == drafted["text"] == both["text"] and plain["tokens"] == plain["steps"] == 24
    for result in (drafted, both):
        assert sum(result["accepted"]) + result["steps"] == 24 == result["tokens"]
    assert both["sources"].keys() == {"lookup", "drafter", "plain"} and "sources" not in drafted
    assert sum(source["share_of_steps"] for source in both["sources"].values()) == pytest.approx(1)


def test_stages_by_hand_end_with_json_and_do_nothing_twice(
    monkeypatch, capfd, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def result(*arguments: object) -> dict:
        assert call(monkeypatch, *arguments) == 0
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    small = ("--tokens", 512, "--sequence-length", 64)
    data, sparse, cut, tuned = (tmp_path / name for name in ("data", "sparse", "cut", "tuned"))
    distill = ("distill", tiny_checkpoint, "demo:train", "--out", data, "--limit", 30, "--max-new-tokens", 8)
    first = result(*distill)
    assert first["rows"] >= 30 and result(*distill) == first
    assert (
        result("prune", tiny_checkpoint, "--out", sparse, "--calibration", data, "--pattern", "2:4", *small)["sparsity"]
        == 0.5
    )
    dropped = result(
        "drop-layers", tiny_checkpoint, "--out", cut, "--calibration", data, "--match-macs", sparse, *small
    )
    assert dropped["dropped"] == 2
    options = ("--sequence-length", 128, "--validation-prompts", 4)
    assert result("finetune", sparse, data, "--out", tuned, *options)["pattern"] == "2:4"
    found = result("eval", tiny_checkpoint, sparse, f"best={tuned}", "--prompts", "demo:eval", "--k", "2,4",
                   "--limit", 4,                   "--max-new-tokens", 8, "--simulate")  # fmt: skip
    assert [d["name"] for d in found["drafters"]] == ["sparse", "best"] and found["k"] == [2, 4]


def test_plan_knows_every_stage(monkeypatch, capsys, tiny_checkpoint: Path) -> None:
    recipe = ROOT / "recipes" / "smollm2.yaml"
    assert call(monkeypatch, "plan", recipe, f"target={tiny_checkpoint}", "--gflops", 100) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [stage["stage"] for stage in plan["stages"]]
    assert names[0] == "distill" and names[-3:] == ["eval", "pack", "speed"] and "sd2-50: finetune" in names
    for stage in plan["stages"]:
        assert stage["memory_bytes"] > 0 and stage["disk_bytes"] > 0
        computed = stage["stage"] != "pack"  # int8 only rounds
        assert (stage["tokens"] > 0) == (stage["device_hours"] > 0) == computed
    hours = {stage["stage"]: stage["device_hours"] for stage in plan["stages"]}
    assert hours["layer-pruned+distilled: finetune"] < 0.8 * hours["sd2-50: finetune"], "half the layers train faster"
    assert call(monkeypatch, "plan", recipe, f"target={tiny_checkpoint}", "--gflops", 200) == 0
    halved = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert halved["device_hours"] == pytest.approx(plan["device_hours"] / 2)


def test_plan_counts_every_workers_model_and_no_servers(monkeypatch, capsys, tiny_checkpoint: Path) -> None:
    recipe = ROOT / "recipes" / "smollm2.yaml"

    def distill(*overrides: str) -> dict:
        assert call(monkeypatch, "plan", recipe, f"target={tiny_checkpoint}", *overrides, "--gflops", 100) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["stages"][0]

    one, two = distill(), distill("distill.workers=2")
    assert two["memory_bytes"] == 2 * one["memory_bytes"] and two["device_hours"] == one["device_hours"]
    served = distill("distill.engine=endpoint", "distill.url=http://localhost:8000/v1")
    assert served == {**one, "memory_bytes": 0, "device_hours": 0}


def test_inspect_shows_a_table_and_ends_with_json(monkeypatch, capsys, half: Path) -> None:
    assert call(monkeypatch, "inspect", half) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["sparsity"] == 0.5 and found["claim_holds"] and len(found["linears"]) == 28
    assert "self_attn.q_proj" in captured.err and "50.00%" in captured.err


def recipe(folder: Path, target: Path, extra: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"target: {target}\ndrafters: [{{name: half, prune: {{}}}}]\n{extra}")
    return path


def leaking(folder: Path, target: Path) -> tuple:
    (folder / "train.jsonl").write_text('{"prompt": "Which river runs through the town of Ems?"}\n')
    return (
        "run",
        recipe(folder, target),
        "distill.prompts=train.jsonl",
        "eval.prompts=train.jsonl",
        "--out",
        folder / "o",
    )


def other_things(folder: Path, target: Path) -> tuple:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("x")
    return ("run", recipe(folder, target), "--out", folder / "mine")


def truncated(folder: Path, target: Path) -> tuple:
    import shutil

    copy = Path(shutil.copytree(target, folder / "copy"))
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    return ("run", recipe(folder, copy), "--out", folder / "o")


def empty_prompts(folder: Path, target: Path) -> tuple:
    (folder / "empty.jsonl").write_text("\n")
    return ("distill", target, folder / "empty.jsonl", "--out", folder / "o")


def link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder)
    return folder / "link"


def refusing(folder: Path, target: Path) -> Path:
    """A model whose chat template raises."""
    import shutil

    copy = Path(shutil.copytree(target, folder / "copy"))
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    return copy


def copied(folder: Path, target: Path, **changes: object) -> Path:
    """The target with other settings in its config, or with another size of vocabulary."""
    import shutil

    from sparsedraft.models import checkpoint

    copy = Path(shutil.copytree(target, folder / "copy"))
    if rows := changes.pop("rows", None):
        model = checkpoint.load(target)
        model.resize_token_embeddings(rows)
        model.save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def untold(folder: Path, target: Path) -> Path:
    """The target without a chat template."""
    copy = copied(folder, target)
    (copy / "chat_template.jinja").unlink()
    return copy


MISTAKES: list[tuple[Callable[[Path, Path], tuple], str]] = [
    (lambda f, t: ("export", t, "--gguf", "q5_0", "--out", f / "a.gguf"), "--gguf q5_0 is not known: choose one of"),
    (lambda f, t: ("export", t, "--gguf", "q8_0", "--out", f / "a"), "does not end in .gguf"),
    (lambda f, t: ("export", f / "none", "--gguf", "q8_0", "--out", f / "a.gguf"), "no such folder"),
    (lambda f, t: ("run", f / "none.yaml"), "no such file"),
    (
        lambda f, t: ("run", recipe(f, t, "finetun: {}"), "--out", f / "o"),
        "finetun is not a known key; did you mean finetune",
    ),
    (lambda f, t: ("run", recipe(f, t), "seed=x", "--out", f / "o"), "seed = 'x' is not possible"),
    (
        lambda f, t: ("run", recipe(f, t), "prune.pattern=2:4", "prune.sparsity=0.75", "--out", f / "o"),
        "2:4 has sparsity 0.5",
    ),
    (lambda f, t: ("run", recipe(f, t), "eval.k=[0]", "--out", f / "o"), "eval.k.0 = 0"),
    (leaking, "1 evaluation prompt(s) occur in the training prompts"),
    (other_things, "holds something else"),
    (truncated, "damaged or cut short"),
    (empty_prompts, "is empty"),
    (lambda f, t: ("eval", t, t, "--prompts", "demo:eval", "--k", "0"), "K is at least 1"),
    (lambda f, t: ("eval", t, t, "--prompts", "demo:eval", "--k", "three"), "not a list of whole numbers"),
    (lambda f, t: ("eval", t, t, "--prompts", "demo:eval", "--tasks", "arc_easy"), "one of the two"),
    (lambda f, t: ("eval", t, t), "one of the two"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--drafter", t, "--policy", "best"), "--policy best is not known"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--drafter", t, "--uag", "no"), "--uag no is not known"),
    (
        lambda f, t: ("generate", t, "--prompt", "x", "--repetition-penalty", "0"),
        "--repetition-penalty 0 is not possible: give more than 0",
    ),
    (lambda f, t: ("generate", f / "none", "--prompt", "x"), "no such folder"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--drafter", ""), "has no tokenizer that can be read"),
    (
        lambda f, t: ("eval", t, t, "--tasks", "arc_easy", "--max-new-tokens", "8"),
        "--max-new-tokens is about drafting, and --tasks scores each model alone",
    ),
    (lambda f, t: ("generate", t, "--prompt", "x", "--tree", "2"), "--tree 2 needs a model that drafts"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--drafter", "lookup", "--tree", "3"), "--tree 3 needs a model"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--lookup"), "--lookup goes beside a model: name one as --drafter"),
    (lambda f, t: ("generate", t, "--prompt", "x", "--lookup", "--drafter", "lookup"), "--drafter lookup alone"),
    (
        lambda f, t: ("generate", t, "--prompt", "x", "--lookup", "--drafter", t, "--tree", "2"),
        "--lookup drafts chains, and --tree 2 none",
    ),
    (lambda f, t: ("eval", t, f"{t}+lookup", "--prompts", "demo:eval", "--simulate"), "turn --simulate off"),
    (
        lambda f, t: ("generate", t, "--prompt", "x", "--drafter", t, "--tree", "3", "--policy", "confidence"),
        "ends chains",
    ),
    (lambda f, t: ("generate", t, "--prompt", "x\udcff"), "is not UTF-8 text"),
    (lambda f, t: ("generate", t, "--prompt", "", "--raw"), "the prompt is empty"),
    (lambda f, t: ("generate", untold(f, t), "--prompt", "x"), "add --raw to continue the text as it is"),
    (lambda f, t: ("generate", t, "--prompt", "fox " * 600), "which fill the target's context of 512"),
    (
        lambda f, t: ("generate", t, "--prompt", "fox " * 30, "--drafter", copied(f, t, max_position_embeddings=20)),
        "which fill its context of 20",
    ),
    (lambda f, t: ("generate", copied(f, t, rows=100), "--prompt", "apples"), "the target's embedding has 100 rows"),
    (lambda f, t: ("eval", copied(f, t, rows=100), t, "--prompts", "demo:eval"), "its tokenizer is another model's"),
    (lambda f, t: ("finetune", t, f, "--out", f / "o"), "no distilled data folder"),
    (
        lambda f, t: ("finetune", t, f, "--out", f / "o", "--learning-rate", "0"),
        "--learning-rate 0 is not possible: give a number between 0 and 1",
    ),
    (
        lambda f, t: ("finetune", t, f, "--out", f / "o", "--dtype", "float16"),
        "--dtype float16 is no arithmetic to train in",
    ),
    (lambda f, t: ("run", recipe(f, t), "finetune.patience=-1", "--out", f / "o"), "finetune.patience = -1"),
    (
        lambda f, t: ("finetune", t, f, "--out", f / "o", "--loss", "kl", "--on-policy", "0.5"),
        "give the target as --teacher",
    ),
    (lambda f, t: ("finetune", t, f, "--out", f / "o", "--nll-weight", "0.5"), "--nll-weight 0.5 needs a loss"),
    (lambda f, t: ("finetune", t, f, "--out", f / "o", "--quantize", "int2"), "--quantize int2 is not known"),
    (lambda f, t: ("finetune", t, f, "--out", f / "o", "--feature-teacher", t), "does nothing alone"),
    (lambda f, t: ("finetune", t, f, "--out", f / "o", "--reselect-share", "0"), "--reselect-share 0 is not possible"),
    (lambda f, t: ("prune", t, "--out", f / "o", "--calibration", "demo", "--device", "warp9"), "--device warp9"),
    (
        lambda f, t: ("plan", recipe(f, t), f"target={t}", "--gflops", "inf"),
        "--gflops inf is not possible: give a finite number",
    ),
    (lambda f, t: ("report", f), "lacks eval/result.json"),
    (lambda f, t: ("inspect", f), "holds no config.json"),
    (lambda f, t: ("eval", t, t, "--prompts", "demo:eval", "--k", "100000000"), "at most 1024"),
    (lambda f, t: ("eval", t, f"={t}", "--prompts", "demo:eval"), "not of the form NAME=MODEL"),
    (lambda f, t: ("run", recipe(f, t), "drafters.0.name=x", "--out", f / "o"), "cannot be changed item by item"),
    (lambda f, t: ("prune", t, "--out", ".", "--calibration", "demo"), "is no name for a new folder"),
    (lambda f, t: ("prune", t, "--out", recipe(f, t) / "o", "--calibration", "demo"), "which is a file"),
    (lambda f, t: ("prune", t, "--out", f / ("x" * 250), "--calibration", "demo"), "too long a name"),
    (lambda f, t: ("prune", t, "--out", link(f), "--calibration", "demo"), "is a symbolic link"),
    (lambda f, t: ("prune", t, "--out", f / "o", "--calibration", "demo", "--device", "meta"), "computes nothing"),
    (lambda f, t: ("prune", t, "--out", f / "o", "--calibration", "demo", "--pattern", "9:8"), "N must be at least 1"),
    (
        lambda f, t: ("prune", refusing(f, t), "--out", f / "o", "--calibration", "demo"),
        "refuses a conversation of user",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(arguments, message: str, monkeypatch, capsys, tiny_checkpoint: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments(tmp_path, tiny_checkpoint)) == 2
    captured = capsys.readouterr()
    said = captured.err
    assert captured.out == "" and "Traceback" not in said
    assert said.count("error: ") == 1 and message in said.replace("\n", " ")


def test_wrong_options_exit_with_2_as_well(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "prune", "--no-such-option") == 2
    assert call(monkeypatch, "distill") == 2
    assert call(monkeypatch, "generate", "t", "--prompt", "x", "--k", "-1") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert call(monkeypatch, "prune", "--help") == 0


def test_a_stage_that_works_in_one_process_refuses_to_be_launched_in_two(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(monkeypatch, "report", tmp_path) == 2
    assert "'report' works in one process: launch several for 'finetune' alone" in capsys.readouterr().err


def test_export_ends_with_one_object(monkeypatch, capsys, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert call(monkeypatch, "export", tiny_checkpoint, "--gguf", "q8_0", "--out", tmp_path / "a.gguf") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(tmp_path / "a.gguf") and result["tensors"] == {"Q8_0": 29, "F32": 9}
