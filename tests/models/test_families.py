"""Decoder families: each pruned, cut, reloaded by plain transformers, evaluated and decoded by the same code."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from families import FAMILIES
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.writers.transformers.abilities import abilities
from stages import drop_layers, evaluate_to, inspect, prune
from timeless import timeless

SMALL = {"tokens": 256, "sequence_length": 64}
PATTERN = {"pattern": "2:4"}
REFINED = {"pattern": "4:8", "allocation": "owl", "refine": True}
UNLIKE = ("llama, tied", "gemma3", "phi3", "gpt-neox", "opt")  # tied; sandwiched norms; fused; biases; nothing gated


@pytest.fixture(scope="module", params=FAMILIES)
def dense(request: pytest.FixtureRequest, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of a family. Read only."""
    hf.set_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param]).eval()
    folder = tmp_path_factory.mktemp("families") / "dense"
    checkpoint.save(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    ("dense", "options"),
    [*((family, PATTERN) for family in FAMILIES), *((family, REFINED) for family in UNLIKE)],
    indirect=["dense"],
)
def test_pruned_by_layers_and_reloaded_by_plain_transformers(dense: Path, options: dict, tmp_path: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(dense)
    out = tmp_path / "half"
    result = prune(str(dense), out, "demo:train", **options, **SMALL)
    plain = AutoModelForCausalLM.from_pretrained(out)
    found = inspect(str(out))
    assert found["claim_holds"] and result["sparsity"] == pytest.approx(0.5, abs=0.05)
    for name, linear in decoder_linears(plain).items():
        assert options["pattern"] != "2:4" or int((linear.weight == 0).sum()) == linear.weight.numel() // 2, name
    pruned = {f"{name}.weight" for name in decoder_linears(plain)}
    for name, tensor in before.state_dict().items():
        assert name in pruned or torch.equal(plain.state_dict()[name], tensor), f"{name} was not to be touched"
    head = plain.get_output_embeddings().weight
    assert (head is plain.get_input_embeddings().weight) == bool(plain.config.tie_word_embeddings)
    ids = torch.randint(3, 320, (1, 12), generator=torch.Generator().manual_seed(0))
    written = plain.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert written.shape == (1, 18)
    again = checkpoint.load(out)  # as our stages load it
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_streamed_errors_are_those_of_the_whole_model(dense: Path, tmp_path: Path) -> None:
    """The hidden states that pruning propagates in files are the pruned model's own."""
    from sparsedraft.layerwise import sequential
    from sparsedraft.layerwise.streamed import Streamed

    model = AutoModelForCausalLM.from_pretrained(dense)
    ids = torch.randint(3, 320, (5, 24), generator=torch.Generator().manual_seed(0))
    streamed = Streamed(dense)
    activations = sequential.Activations(streamed, ids, tmp_path / "hidden")
    states = []
    for index, _ in sequential.walk(streamed, activations):
        states.append(torch.cat(list(activations.batches(index))))
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    for mine, theirs in zip(states, expected[: len(states)], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_cut_evaluated_and_decoded(dense: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    prune(str(dense), tmp_path / "half", "demo:train", pattern="2:4", method="magnitude", **SMALL)
    assert drop_layers(str(dense), tmp_path / "cut", "demo:train", layers=1, **SMALL)["dropped"] == 1
    drafters = [("half", str(tmp_path / "half")), ("cut", str(tmp_path / "cut")), ("self", str(dense))]
    options = {"k": [1, 4], "max_new_tokens": 8, "limit": 3, "batch_size": 2}
    real = evaluate_to(tmp_path / "real", str(dense), drafters, "demo:eval", dict(**options))
    simulated = evaluate_to(tmp_path / "simulated", str(dense), drafters, "demo:eval", dict(**options, simulate=True))
    family = request.node.callspec.params["dense"]
    assert abilities(checkpoint.load(dense)).packs == (family != "opt"), "OPT builds its mask without the position ids"
    assert timeless(real["drafters"]) == simulated["drafters"]
    assert real["drafters"][2]["alpha"] == 1 and real["drafters"][2]["k"]["4"]["acceptance_rate"] == 1
