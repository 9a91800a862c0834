"""The native runtime under `generate` and `eval`: the loop's own guarantees, and the numbers of transformers."""

import json
from pathlib import Path

import pytest

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.native import extension as native
from sparsedraft.native.session import Session
from sparsedraft.speculate.loop.decode import generate, generate_all
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.transformers.backend import TransformersBackend
from stages import distill, evaluate_to, pack, prune
from timeless import timeless

made = packed_folders.made  # fixture
pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")


@pytest.fixture(scope="module")
def packed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An int8 target, and drafters pruned from it."""
    root = tmp_path_factory.mktemp("packed")
    pack(str(tiny_checkpoint), root / "target", weights="int8")
    for name, pattern in (("2of4", "2:4"), ("half", "unstructured")):
        prune(
            str(tiny_checkpoint), root / f"{name}-pruned", "demo:train", pattern=pattern, tokens=512, sequence_length=64
        )
        pack(str(root / f"{name}-pruned"), root / name, weights="int8")
    distill(str(tiny_checkpoint), "demo:train", root / "data", limit=4, max_new_tokens=8)
    pack(str(root / "half-pruned"), root / "trimmed", weights="bf16", head_tokens=200, head_data=str(root / "data"))
    return {name: root / name for name in ("target", "2of4", "half", "2of4-pruned", "trimmed")}


@pytest.mark.parametrize("drafter", ["2of4", "half", "target"])
def test_greedy_text_is_the_int8_targets_own_to_the_last_bit(packed: dict[str, Path], drafter: str) -> None:
    """No near-ties here: verifying computes the bits that plain decoding computes."""
    target = LoadedModel.load(packed["target"], runtime="native")
    pair = Pair.of(target, LoadedModel.load(packed[drafter], runtime="native"), "auto", Sampling())
    alone = Pair.of(target, None, "auto", Sampling())
    asked = [templates.chat_ids(target.tokenizer, p.messages()) for p in prompts.read("demo:eval")[:3]]
    expected = [
        generate(alone.decoder([alone.prompt_pair(ids)], Constant(0), Sampling()), ids, 40).tokens for ids in asked
    ]
    for policy, branching in [(Constant(1), 1), (Constant(5), 1), (Constant(9), 3), (policy_named("auto"), 1)]:
        for ids, text in zip(asked, expected, strict=True):
            decoder = pair.decoder([pair.prompt_pair(ids)], policy, Sampling(), branching=branching)
            assert generate(decoder, ids, 40).tokens == text
    together = pair.decoder([pair.prompt_pair(ids) for ids in asked], Constant(3), Sampling())
    assert [made.tokens for made in generate_all(together, asked, 40, [0] * 3)] == expected


def test_evaluation_by_either_runtime(packed: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Float weights: both runtimes find the same, and so does the simulation."""
    drafters, results = [("half", str(packed["2of4-pruned"])), ("self", str(tiny_checkpoint))], {}
    for runtime in ("native", "transformers"):
        options = {"k": [1, 4], "max_new_tokens": 24, "limit": 4, "batch_size": 4, "runtime": runtime}
        results[runtime] = evaluate_to(tmp_path / runtime, str(tiny_checkpoint), drafters, "demo:eval", options)
    both = [timeless(results[runtime]["drafters"]) for runtime in results]
    for mine, theirs in zip(*both, strict=True):
        assert {k: v for k, v in mine.items() if v != theirs[k]} == {}
    simulated = {"k": [1, 4], "max_new_tokens": 24, "limit": 4, "batch_size": 4, "simulate": True}
    found = evaluate_to(tmp_path / "simulated", str(tiny_checkpoint), drafters, "demo:eval", simulated)
    assert timeless(results["native"]["drafters"]) == found["drafters"]


def test_a_window_in_either_runtime_and_in_simulation(packed: dict[str, Path], tmp_path: Path) -> None:
    """The loop writes the target's own text, or `evaluate` raises; and the simulation has its numbers."""
    drafters = [("half", str(packed["2of4-pruned"]))]
    options = {"k": [1, 4], "max_new_tokens": 40, "limit": 4, "batch_size": 4, "drafter_window": 24}
    target = str(packed["target"])
    found = {
        name: evaluate_to(tmp_path / name, target, drafters, "demo:eval", options | how)
        for name, how in {
            "native": {"runtime": "native"},
            "simulated": {"simulate": True},
            "whole": {"simulate": True, "drafter_window": 0},
        }.items()
    }
    assert timeless(found["native"]["drafters"]) == found["simulated"]["drafters"] != found["whole"]["drafters"]
    assert found["native"]["drafter_window"] == 24 and "drafter_window" not in found["whole"]
    how = options | {"simulate": True, "answers": tmp_path / "whole"}
    assert (
        evaluate_to(tmp_path / "taken", target, drafters, "demo:eval", how)["drafters"]
        == found["simulated"]["drafters"]
    )


def test_packed_drafters_are_evaluated(packed: dict[str, Path], tmp_path: Path) -> None:
    options = {"k": [3], "max_new_tokens": 24, "limit": 4, "batch_size": 4}
    found = evaluate_to(tmp_path / "eval", str(packed["target"]), [("half", str(packed["half"]))], "demo:eval", options)
    (drafter,) = found["drafters"]
    assert drafter["sparsity"] == pytest.approx(0.5, abs=0.02) and drafter["k"]["3"]["measured"]["differing"] == 0
    dense = evaluate_to(
        tmp_path / "dense", str(packed["target"]), [("self", str(packed["target"]))], "demo:eval", options
    )
    assert dense["drafters"][0]["alpha"] == 1 and dense["drafters"][0]["macs_vs_dense"] == 1
    assert drafter["macs_vs_dense"] < 0.75


def test_packed_drafters_are_evaluated_by_transformers(packed: dict[str, Path], tmp_path: Path) -> None:
    """As on another device or in another dtype than the native engine's; acceptance by its own arithmetic."""
    drafters = [(name, str(packed[name])) for name in ("half", "trimmed", "target")]
    options = {"k": [3], "max_new_tokens": 16, "limit": 3, "batch_size": 4, "simulate": True}
    native_ = evaluate_to(tmp_path / "native", str(packed["target"]), drafters, "demo:eval", options)
    found = evaluate_to(
        tmp_path / "other", str(packed["target"]), drafters, "demo:eval", dict(options, dtype="bfloat16")
    )
    for mine, theirs in zip(found["drafters"], native_["drafters"], strict=True):
        for cost in ("macs_per_token", "nonzero_params", "sparsity", "sparsity_whole_model"):
            assert mine[cost] == theirs[cost], cost
        assert mine["alpha"] == pytest.approx(theirs["alpha"], abs=0.15)
    assert found["drafters"][-1]["alpha"] > 0.85, "the target for itself"


def test_which_runtime(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(**options: str) -> type:
        return type(LoadedModel.load(tiny_checkpoint, **options).backend(1))

    assert runs() is Session and runs(runtime="native") is Session
    assert runs(runtime="transformers") is TransformersBackend and runs(dtype="bfloat16") is TransformersBackend
    with pytest.raises(UserError, match="--runtime onnx is not known"):
        runs(runtime="onnx")
    with pytest.raises(UserError, match="--runtime native computes in float32 on the CPU, not in bfloat16 on cpu"):
        runs(runtime="native", dtype="bfloat16")
    monkeypatch.setattr(native, "_module", lambda: (None, "no _native"))
    assert runs() is TransformersBackend
    with pytest.raises(UserError, match="the native runtime was not built"):
        runs(runtime="native")


@pytest.mark.parametrize("name", ["2of4-pruned", "2of4", "half", "target", "trimmed"])
def test_sides_say_the_same(packed: dict[str, Path], name: str) -> None:
    """Sizes, ends and costs, whichever runtime."""
    one, other = (LoadedModel.load(packed[name], runtime=runtime) for runtime in ("native", "transformers"))
    for name in ("width", "embedding_rows", "context", "takes_masks", "eos_ids"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.weights() == other.weights() and one.end_of_turn() == other.end_of_turn()


@pytest.mark.parametrize(
    ("family", "tied", "pattern", "weights"),
    [
        ("llama", False, "4:8", "bf16"), ("qwen2", True, "unstructured", "f16"), ("qwen2", False, "2:4", "int8"),
        ("gemma3", True, "unstructured", "int8"), ("gemma3", False, None, "f16"),
    ],
)  # fmt: skip
def test_packed_costs_are_those_of_the_checkpoint(family, tied, pattern, weights, made) -> None:
    """Over architectures, with biases and without, whatever counts them; int8 rounds some weights to zero."""
    source, folder = made(family, tied, pattern, weights)
    plain, native_, other = (
        LoadedModel.load(at, runtime=runtime).weights()
        for at, runtime in ((source, "transformers"), (folder, "native"), (folder, "transformers"))
    )
    assert native_ == other
    if weights == "int8":
        assert 0.98 * plain["macs_per_token"] < native_["macs_per_token"] <= plain["macs_per_token"]
    else:
        assert native_ == plain


def test_a_mask_that_lies_is_refused(packed: dict[str, Path], tmp_path: Path) -> None:
    model = checkpoint.load(packed["2of4-pruned"])
    model.model.layers[0].mlp.up_proj.weight.data[0] = 1
    checkpoint.save(model, checkpoint.load_tokenizer(packed["2of4-pruned"]), tmp_path / "liar")
    claim = json.loads((packed["2of4-pruned"] / "sparsity.json").read_text())
    (tmp_path / "liar/sparsity.json").write_text(json.dumps(claim))
    for runtime in ("native", "transformers"):
        with pytest.raises(UserError, match=r"lies: model\.layers\.0\.mlp\.up_proj is not 2:4"):
            LoadedModel.load(tmp_path / "liar", runtime=runtime)
