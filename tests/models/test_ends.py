"""The ids that end a text: tokenizer, config.json and generation_config.json are heard, everywhere."""

import json
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native import extension as native
from sparsedraft.native.packed_folder import PackedReader
from sparsedraft.stages.distill.job import Job
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.stages.finetune import loop
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.pack.head import frequent_tokens
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.server.address import Endpoint
from stages import distill, finetune, pack
from tiny import build_llama, build_tokenizer

ALL = {2, 301, 310, 317}  # of the tokenizer, of config.json (two), of generation_config.json
RUNTIMES = ["transformers", *(["native"] if native.is_built() else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose three files name different ids; the data of a model like it that used none of them."""
    root = tmp_path_factory.mktemp("ends")
    folder, target = (root / name for name in ("model", "target"))
    for place in (folder, target):
        checkpoint.save(build_llama(layers=1), build_tokenizer(), place)
    distill(str(target), "demo:train", root / "data", limit=6, max_new_tokens=8)
    for name, ids in (("config.json", [301, 310]), ("generation_config.json", 317)):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ids}))
    return folder


def job(folder: Path, runs_natively: bool) -> Job:
    greedy = Sampling()
    engine = "native" if runs_natively else "transformers"
    return Job(folder, "respond", engine, None, greedy, greedy, 8, 1, 0, 4, 0, "cpu", "float32")


def test_every_reader_of_the_folder_hears_all_of_them(folder: Path) -> None:
    tokenizer = checkpoint.load_tokenizer(folder)
    assert end_ids(folder, tokenizer) == ALL
    for runtime in RUNTIMES:
        side = LoadedModel.load(folder, runtime=runtime)
        assert side.eos_ids == ALL
        assert side.writer(2).eos_ids == ALL
        assert job(folder, runtime == "native").writer().eos_ids == ALL
    assert ServerTarget(folder, Endpoint("http://localhost:1/v1", "model"), {}).eos_ids == ALL


def test_a_trimmed_head_keeps_all_of_them(folder: Path, tmp_path: Path) -> None:
    data = str(folder.parent / "data")
    ids, _ = frequent_tokens(folder, data, 4, 320)
    assert set(ids.tolist()) == ALL
    pack(str(folder), tmp_path / "trimmed", head_tokens=20, head_data=data)
    kept = PackedReader(tmp_path / "trimmed").head_ids()
    assert kept is not None and set(kept.tolist()) >= ALL
    with pytest.raises(UserError, match="--head-tokens 3 cannot hold the 4 tokens that end a text"):
        frequent_tokens(folder, data, 3, 320)


def test_the_drafters_own_rows_end_at_all_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def train(task: loop.Task, *_: object, **__: object) -> dict[str, object]:
        heard.append(task.eos_ids)
        return {"drafting": None}

    monkeypatch.setattr(loop, "train", train)
    settings = Settings(loss="kl", sequence_length=128, on_policy=0.5)
    finetune(
        str(folder),
        str(folder.parent / "data"),
        tmp_path / "out",
        settings=settings,
        teacher=str(folder.parent / "target"),
        validation_prompts=1,
    )
    assert heard == [ALL]
