"""The shipped recipes, whole, with tiny models in the place of their own."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerFast

from places import ROOT
from sparsedraft.native import extension as native
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe import reading as recipes
from sparsedraft.run import run_recipe
from sparsedraft.stages.distill.options import DistillOptions
from sparsedraft.stages.distill.stage import distill
from sparsedraft.stages.report.cards import cards
from sparsedraft.stages.report.load import load
from sparsedraft.stages.report.manifest import NAME
from sparsedraft.stages.report.stage import serve_command
from tiny import build_llama, build_tokenizer

RECIPES = ROOT / "recipes"
SMALL = [
    "distill.limit=10", "distill.max_new_tokens=8", "prune.tokens=512", "prune.sequence_length=64",
    "finetune.tokens=512", "finetune.sequence_length=256", "finetune.rows_per_step=1", "finetune.validation_prompts=2",
    "eval.prompts=demo:eval", "eval.limit=3", "eval.max_new_tokens=8",
]  # fmt: skip
SAMPLED = ["sampled.prompts=demo:eval", "sampled.limit=3", "sampled.max_new_tokens=8"]
TIMED = [
    "distill.mode=respond",
    "distill.prompts=demo:train",
    "distill.openings=[]",
    "speed.limit=2",
    "speed.max_new_tokens=8",
]


def use(result: dict, drafter: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the code on a drafter's model card prints."""
    card = (Path(result["report"]).parent / "cards" / f"{drafter}.md").read_text()
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers, one of which can be dropped. Read only."""
    folder = tmp_path_factory.mktemp("shipped") / "tiny"
    build_llama(layers=2).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def stranger(tmp_path: Path, tiny: Path) -> Path:
    """A drafter with one token more than the target."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    tokenizer.add_tokens(["zebra"])
    build_llama(seed=3, layers=2, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "stranger")
    tokenizer.save_pretrained(tmp_path / "stranger")
    return tmp_path / "stranger"


def run(name: str, out: Path, overrides: list[str]) -> dict:
    recipe = recipes.read(RECIPES / name, [*SMALL, *overrides])
    assert plan_recipe(recipe, gflops=100)["device_hours"] > 0
    result = run_recipe(recipe, out)
    assert [d["name"] for d in result["drafters"]] == [entry.name for entry in recipe.drafters if entry.report]
    sparse = {d["name"]: d["sparsity"] for d in result["drafters"]}
    assert sparse["sd2-50"] == pytest.approx(0.5, abs=0.01) and sparse["dense"] < 0.1
    return result


@pytest.mark.skipif(not native.available(), reason="the extension was not built")
def test_qwen_coder(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"target={tiny}", f"drafter={tiny}", "speed.head_tokens=200", *SAMPLED, *TIMED]
    result = run("qwen-coder.yaml", tmp_path / "out", overrides)
    assert result["sampled"]["temperature"] == 1 and result["sampled"]["simulated"]
    for d in result["sampled"]["drafters"]:
        assert d["k"]["8"]["mal"] >= 1 and (0 < d["alpha"] < 1 or d["name"] == "dense")
    dense = result["sampled"]["drafters"][0]  # the target itself: every draft is accepted
    assert dense["alpha"] == pytest.approx(1, abs=1e-4) and dense["k"]["3"]["acceptance_rate"] > 0.99
    log = tmp_path / "out" / "drafters" / "sd2-50" / "finetuned" / "provenance.json"
    assert json.loads(log.read_text())["inputs"]["dtype"] == "bfloat16"
    markdown = Path(result["report"]).with_suffix(".md").read_text()
    assert "## Under sampling, temperature 1.0" in markdown

    assert use(result, "sd2-2of4", capsys).startswith("Why is the sky blue?")
    same_without_a_manifest(tmp_path / "out", tmp_path / "older")

    import results

    kept, page = tmp_path / "kept", tmp_path / "RESULTS.md"
    page.write_text("# Results\n\n<!-- results of kept -->\nold\n<!-- end of kept -->\nthe rest\n")
    results.main([str(tmp_path / "out"), "--keep", str(kept), "--into", str(page)])
    table = capsys.readouterr().out
    results.main([str(kept)])
    assert capsys.readouterr().out == table, "the same from what was kept"
    text = page.read_text()
    assert table in text and "old" not in text and text.startswith("# Results\n") and text.endswith("the rest\n")
    assert "| drafters/sd2-2of4/finetuned | `" in table
    assert all(f"| {d['name']} | " in table for d in result["drafters"])
    assert "## Drafters packed" in markdown and "Packed, " in table
    import curve

    wanted = ["--drafter", "sd2-50", "--tokens", "256", "--data-tokens", "20,20:300", "--threads", "1"]
    for _ in range(2):  # the second finds everything done
        rows = curve.main([str(tmp_path / "out"), *wanted, "--out", str(tmp_path / "curve")])
    drawn = capsys.readouterr().out
    assert rows[5]["data"] == rows[4]["data"] < 30 and rows[5]["tokens"] < rows[4]["tokens"]
    for bad in ("20:", "20:0", "1:2:3", "many"):
        with pytest.raises(SystemExit, match="2"):
            curve.main([str(tmp_path / "out"), "--data-tokens", bad, "--out", str(tmp_path / "curve")])
    with pytest.raises(SystemExit, match="sd2-75: choose one that only fine-tunes another: sd2-50"):
        curve.main([str(tmp_path / "out"), "--drafter", "sd2-75", *wanted[2:], "--out", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="holds the curve of another run, recipe or drafter"):
        curve.main([str(tmp_path / "out"), "--drafter", "sd2-4:8", *wanted[2:], "--out", str(tmp_path / "curve")])
    assert [row["label"] for row in rows] == [
        "dense", "sparse-50", "sd2-50", "sd2-50 256 tokens", "sd2-50 20 of the data",
        "sd2-50 20 of the data, 300 tokens",
    ]  # fmt: skip
    assert (
        rows[3]["tokens"] < rows[2]["tokens"] and rows[4]["data"] < rows[3]["data"] and "| sd2-50 256 tokens |" in drawn
    )
    assert len({row["val_loss"][0] for row in rows[2:]}) == 1, "the same prompts validate"
    compared = [f"MAL{how} / {other}'s" for how, other in (
        ("", "layer-pruned+distilled"), ("", "dense"), (", sampled", "dense"), (", packed", "dense"))]  # fmt: skip
    assert f"| drafter | {' | '.join(compared)} | speed-up / dense's | with the prompt / dense's |" in table
    row = next(line for line in table.splitlines() if line.startswith("| sd2-75 | ") and "% (" in line)
    found = [cell.partition(" (")[0] for cell in row.strip("| ").split(" | ")[1:]]
    assert found == compared_by_hand(tmp_path / "out", "sd2-75")
    partial(tmp_path / "out", results, capsys)


@pytest.mark.skipif(not native.available(), reason="the extension was not built")
def test_demo(tiny: Path, tmp_path: Path) -> None:
    """What the target wrote before is taken over, and the report begins with what whole answers gain."""
    stored, out = tmp_path / "stored", tmp_path / "c++"
    distill(
        DistillOptions(target=str(tiny), prompts="demo:train", out=stored, limit=10, max_new_tokens=8, engine="native")
    )
    changes = [f"target={tiny}", f"drafter={tiny}", f"distill.stored={stored}", "distill.weights=null"]
    changes += ["speed.head_tokens=200", "speed.limit=2", "speed.max_new_tokens=8", "distill.again=4"]
    recipe = recipes.read(RECIPES / "demo.yaml", [*SMALL, *changes])
    assert plan_recipe(recipe, gflops=100)["device_hours"] > 0
    result = run_recipe(recipe, out)
    assert json.loads((out / "distilled/result.json").read_text())["again"] == 4
    assert [d["name"] for d in result["speed"]["drafters"]] == [
        "dense", "sd2-4:8", "dense+lookup", "sd2-4:8+lookup"
    ]  # fmt: skip
    first, *others = Path(result["report"]).with_suffix(".md").read_text().splitlines()
    gained = {d["name"]: d["k"]["auto"]["measured"]["end_to_end"]["speedup"] for d in result["speed"]["drafters"]}
    best = max(gained, key=lambda name: gained[name])
    assert first.startswith(f"# Whole answers are written {gained[best]:.2f}x (") and best in first
    served = next(line for line in others if line.startswith("    sparsedraft serve "))
    assert served.endswith(" --lookup") == best.endswith("+lookup")
    assert Path(served.split()[2]).is_dir() and Path(served.split()[4]).is_dir()
    run = load(out)
    for drafter in result["speed"]["drafters"]:  # which is the fastest depends on the machine
        command = serve_command(replace(run, speed={**result["speed"], "drafters": [drafter]}))
        assert command is not None and command.endswith(" --lookup") == drafter["name"].endswith("+lookup")


def same_without_a_manifest(run: Path, older: Path) -> None:
    """A report shows the same of a run whose folders alone say what it holds."""
    ignored = shutil.ignore_patterns("*.safetensors", "tokenizer*")
    shutil.copytree(run, older, ignore=ignored)
    (older / NAME).unlink()
    ours, theirs = load(run), load(older)
    assert ours.manifest.baseline == theirs.manifest.baseline == "layer-pruned+distilled"
    for field in (
        "result",
        "example",
        "distilled",
        "sampled",
        "speed",
        "packed_eval",
        "packed",
        "curves",
        "provenance",
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert [*ours.provenance] == [*theirs.provenance] and [*ours.curves] == [*theirs.curves]
    assert cards(ours) == cards(theirs)


def compared_by_hand(run: Path, name: str) -> list[str]:
    """What a row of the comparisons must say, from the results that stand above it."""
    parts = [json.loads((run / part / "result.json").read_text()) for part in ("eval", "sampled", "packed-eval")]
    mal = [{d["name"]: d["k"]["5"]["mal"] for d in part["drafters"]} for part in parts]
    speeds = json.loads((run / "speed" / "result.json").read_text())["drafters"]
    best = {d["name"]: max((k["measured"] for k in d["k"].values()), key=lambda m: m["speedup"]) for d in speeds}
    ours, dense = best[name], best["dense"]
    return [
        f"{mal[0][name] / mal[0]['layer-pruned+distilled']:.2f}",
        *(f"{of[name] / of['dense'] - 1:+.1%}" for of in mal),
        f"{ours['speedup'] / dense['speedup']:.2f}",
        f"{ours['end_to_end']['speedup'] / dense['end_to_end']['speedup']:.2f}",
    ]


def partial(run: Path, results: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose later parts lack a drafter, or were not timed, has dashes; a run's own folder is not kept into."""
    with pytest.raises(SystemExit, match="is the folder of a run, whose results it would replace"):
        results.main([str(run), "--keep", str(copy(run))])
    for part in ("sampled", "packed-eval", "speed"):
        file = run / part / "result.json"
        whole = json.loads(file.read_text())
        file.write_text(json.dumps(whole | {"drafters": [d for d in whole["drafters"] if d["name"] != "sd2-75"]}))
        rows = (file.parent / "rows.jsonl").read_text().splitlines()
        kept = [row for row in rows if json.loads(row)["drafter"] != "sd2-75"]
        (file.parent / "rows.jsonl").write_text("".join(f"{row}\n" for row in kept))
    (run / "speed-simulated").mkdir()
    (run / "speed-simulated" / "result.json").write_text((run / "eval" / "result.json").read_text())
    results.main([str(run)])
    table = capsys.readouterr().out
    assert "% (" in table and "| - | - | - | - |" in next(
        line for line in table.splitlines() if line.startswith("| sd2-75 | ") and "% (" in line
    )
    evaluated = run / "eval" / "result.json"
    evaluated.write_text(evaluated.read_text().replace('"name": "dense"', '"name": "other"'))
    assert "| vs the target |" in results.cost(run, json.loads(evaluated.read_text()), None)


def copy(run: Path) -> Path:
    """Of a run's folder as little as tells that it is one."""
    to = run.parent / "another"
    (to / "eval").mkdir(parents=True)
    shutil.copyfile(run / "eval" / "provenance.json", to / "eval" / "provenance.json")
    return to


@pytest.mark.skipif(not native.available(), reason="the extension was not built")
def test_uag(tiny: Path, stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("uag.yaml", tmp_path / "out", [f"target={tiny}", f"drafter={stranger}", *SAMPLED, *TIMED])
    assert {d["route"] for d in result["drafters"]} <= {"realign", "intersection"}
    assert result["sampled"]["temperature"] == 1 and result["sampled"]["simulated"] and result["simulated"]
    assert use(result, "sd2-50", capsys).startswith("Why is the sky blue?")


def test_llama_70b(served: str, talker: Path, tmp_path: Path) -> None:
    """Its target behind a real server."""
    overrides = [f"target={talker}", f"drafter={talker}", "device=cpu", "dtype=float32", "distill.prompts=demo:train"]
    overrides += [f"distill.url={served}", "distill.served_name=tiny/talker", "distill.concurrency=2"]
    overrides += [f"eval.url={served}", "eval.served_name=tiny/talker"]
    result = run("llama-3.1-70b.yaml", tmp_path / "out", overrides)
    rows = json.loads((tmp_path / "out" / "distilled" / "result.json").read_text())["rows"]
    # its dense drafter is the target here, but a server's text may encode to other tokens than it wrote
    assert rows > 5 and result["simulated"] and result["drafters"][0]["alpha"] > 0.6


def test_plan_of_llama_70b(capsys: pytest.CaptureFixture[str]) -> None:
    """From the models' published shapes; the target's weights are counted nowhere, as a server holds them."""
    import plan_70b

    plan_70b.main(["--gflops", "1000"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    memory = {row[0].removeprefix("| "): float(row[2]) for row in rows[2:11]}
    assert memory["distill"] == 0 and 1 < memory["eval"] < 10 < memory["sd2-50: finetune"] < 40
