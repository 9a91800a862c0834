"""Saved states of a training: one that cannot be read costs the steps since the one before, and nothing else."""

import os
from pathlib import Path

import pytest
import torch

from sparsedraft.stages.finetune import state
from sparsedraft.stages.finetune.loop import Settings, Task, train
from training import samples, sparse

SMALL = {"tokens": 1500, "sequence_length": 64, "rows_per_step": 2, "learning_rate": 1e-3, "save_every": 2}
BEST = {"patience": 9, "validate_every": 1}  # early stopping, which keeps the best weights


def trained(tiny_llama, folder: Path, die_at: int | None = None, **more: int) -> tuple[dict, dict, int]:
    """(the weights, the result, the first step made) of a training in `folder` that may have to go on."""
    folder.mkdir(exist_ok=True)
    model, made = tiny_llama(), []

    def after(step: int) -> None:
        made.append(step)
        if step == die_at:
            raise KeyboardInterrupt

    settings = Settings(**SMALL, **more)
    result = train(Task(model, sparse(model), samples(20), samples(4, 9)), settings, folder, after_step=after)
    return model.state_dict(), result, made[0]


def cut_short(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[dict, dict, bytes]]:
    """(weights, result, log.jsonl) without and with early stopping."""
    found = {}
    for best, more in ((False, {}), (True, BEST)):
        folder = tmp_path_factory.mktemp("whole")
        weights, result, _ = trained(tiny_llama, folder, **more)
        found[best] = weights, result, (folder / "log.jsonl").read_bytes()
    return found


def same(found: tuple[dict, dict, int], folder: Path, wanted: tuple[dict, dict, bytes]) -> bool:
    weights, result, log = wanted
    assert found[1] == result and (folder / "log.jsonl").read_bytes() == log
    return all(torch.equal(found[0][name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("damage", "best", "first", "said"),
    [
        ({}, True, 7, ""),
        ({state.STATE: 0.0}, False, 5, "goes on from step 4"),
        ({state.STATE: 0.001}, False, 5, "goes on from step 4"),
        ({state.STATE: 0.9}, True, 5, "goes on from step 4"),
        ({state.STATE: 0.5, state.BEFORE: 0.5}, False, 1, "starts afresh"),
        ({state.BEFORE: 0.5}, False, 7, ""),
        ({".best-*": 0.7}, True, 1, "starts afresh"),
    ],
)
def test_a_state_cut_short_costs_the_steps_since_the_one_before(
    damage: dict[str, float], best: bool, first: int, said: str, tiny_llama, undisturbed, tmp_path: Path, capsys
) -> None:
    more = BEST if best else {}
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_llama, tmp_path, die_at=7, **more)
    for name, share in damage.items():
        for file in tmp_path.glob(name):
            cut_short(file, share)
    capsys.readouterr()
    found = trained(tiny_llama, tmp_path, **more)
    told = " ".join(capsys.readouterr().err.split())
    assert (said in told) if said else ("cannot be read" not in told)
    assert found[2] == first and same(found, tmp_path, undisturbed[best])


def test_a_kill_between_two_states_leaves_one(tiny_llama, undisturbed, tmp_path: Path, monkeypatch) -> None:
    """After the last has become the one before, and the new one is not written yet."""
    write = state.State._write

    def dies(path: Path, tensors: dict, metadata: dict) -> None:
        if metadata["step"] == "6":
            raise KeyboardInterrupt
        write(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "_write", staticmethod(dies))
        with pytest.raises(KeyboardInterrupt):
            trained(tiny_llama, tmp_path)
    assert not (tmp_path / state.STATE).exists()
    found = trained(tiny_llama, tmp_path)
    assert found[2] == 5 and same(found, tmp_path, undisturbed[False])
