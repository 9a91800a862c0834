"""Where a pair takes the drafter's temperature from, and what it changes: q alone, where something is drawn."""

import json
from pathlib import Path

import pytest
import torch

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, probabilities
from sparsedraft.models.config import drafting
from sparsedraft.native import extension as native
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.loaded import LoadedModel
from stages import generate as write
from tiny import build_llama, build_tokenizer

WARM, PROMPT = Sampling(0.8, top_k=40, top_p=0.95), [5, 17, 30]
RUNTIMES = ["transformers", *(["native"] if native.is_built() else [])]


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A drafter's folder that says 0.6."""
    build_llama(seed=3).save_pretrained(tmp_path / "drafter")
    build_tokenizer().save_pretrained(tmp_path / "drafter")
    drafting.write(tmp_path / "drafter", drafting.Drafting(temperature=0.6))
    return tmp_path / "drafter"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("asked", "used"), [(None, 0.6), (1.0, 1.0), (1.3, 1.3)])
def test_q_is_that_of_the_temperature(
    learned: Path, tiny_checkpoint: Path, runtime: str, asked: float | None, used: float
) -> None:
    target, drafter = (LoadedModel.load(folder, runtime=runtime) for folder in (tiny_checkpoint, learned))
    pair = Pair.of(target, drafter, "auto", WARM, drafter_temperature=asked)
    assert pair.drafter_temperature == used and pair.draws(WARM) and not pair.draws(Sampling())
    logits = drafter.backend(1).forward([PROMPT], [1])[0][0]
    decoder = pair.decoder([pair.prompt_pair(PROMPT)], Constant(3), WARM)
    expected = probabilities(logits, Sampling(0.8 * used, top_k=40, top_p=0.95))
    row = TokenSequence(0, PROMPT, len(PROMPT), 99, Dice(0))
    assert isinstance(decoder.drafter, ModelDrafter) and decoder.sampling == WARM
    drafts = decoder.drafter.propose([row], [3])[0]
    assert drafts.q is not None and torch.allclose(drafts.q[0], expected, atol=1e-6)
    along = ModelDrafter(drafter.backend(1), pair.drafting(WARM)).distributions(row, drafts.tokens[:2])
    assert torch.allclose(torch.stack(drafts.q), along, atol=1e-5), "what `eval --simulate` compares with"
    tree = pair.decoder([pair.prompt_pair(PROMPT)], Constant(3), WARM, branching=2).drafter
    assert tree is not None
    q = tree.propose([row], [2])[0].q
    assert q is not None and torch.allclose(q[0], expected, atol=1e-6)


def test_greedy_drafts_are_the_same_at_any_temperature(learned: Path, tiny_checkpoint: Path) -> None:
    target, drafter = LoadedModel.load(tiny_checkpoint), LoadedModel.load(learned)
    steps = []
    for own in (None, 0.2, 50.0):
        pair = Pair.of(target, drafter, "auto", Sampling(), drafter_temperature=own)
        asked = pair.prompt_pair(PROMPT)
        steps.append(generate(pair.decoder([asked], Constant(3), Sampling()), PROMPT, 20).steps)
    assert steps[0] == steps[1] == steps[2]


def test_what_draws_nothing_has_none(learned: Path, tiny_checkpoint: Path) -> None:
    target = LoadedModel.load(tiny_checkpoint)
    for pair in (Pair.of(target, None, "auto", WARM), Pair.of(target, "lookup", "auto", WARM)):
        assert pair.drafter_temperature == 1 and not pair.draws(WARM)
    assert Pair.of(target, LoadedModel.load(tiny_checkpoint), "auto", WARM).drafter_temperature == 1, "says nothing"


def test_generate_names_it(learned: Path, tiny_checkpoint: Path) -> None:
    options = {"drafter": str(learned), "max_new_tokens": 4, "raw": True}
    for own, used in (({}, 0.6), ({"drafter_temperature": 0.75}, 0.75), ({"drafter_temperature": "learned"}, 0.6)):
        result = write(str(tiny_checkpoint), ["the quick"], temperature=1.0, **own, **options)
        assert result["drafter_temperature"] == used
    assert "drafter_temperature" not in write(str(tiny_checkpoint), ["the quick"], **options)


@pytest.mark.parametrize("value", [0, -1, float("nan"), 101, True, "hot", ""])
def test_what_is_no_temperature_is_refused(tiny_checkpoint: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"--drafter-temperature .* is not possible: give learned, or a number above 0"):
        write(str(tiny_checkpoint), ["the quick"], drafter_temperature=value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"temperature": 0}', '{"temperature": "0.8"}', '{"temperature": 1e9}', '{"a": NaN}']
)
def test_a_damaged_record_is_named_with_its_mend(learned: Path, content: str) -> None:
    (learned / drafting.DRAFTING).write_text(content)
    with pytest.raises(UserError, match=r"drafting\.json cannot be read .*: make it again, or delete the file"):
        LoadedModel.load(learned)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert drafting.read(tmp_path) is None and drafting.of(tmp_path).factor == 1
    own = drafting.Drafting(temperature=0.85, alpha=(0.3, 0.33), places=9, target="top-k")
    drafting.write(tmp_path, own)
    assert drafting.read(tmp_path) == own and drafting.of(tmp_path).factor == 0.85
    (tmp_path / drafting.DRAFTING).write_text(json.dumps({"temperature": 1, "later": "field"}))
    assert drafting.of(tmp_path).factor == 1
