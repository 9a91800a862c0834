"""Two CPU processes with gloo train what one process trains: DDP and FSDP2, resumed across, and failing together."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors import safe_open
from safetensors.torch import load_file

from forks import Fork
from sparsedraft.cli import guarded
from sparsedraft.models import checkpoint, claims
from sparsedraft.stages.finetune.loop import Settings
from sparsedraft.stages.finetune.state import BEFORE, STATE
from stages import distill, finetune, prune
from transformers_server import ENVIRONMENT, free_port

pytestmark = pytest.mark.slow

WAYS = {"ddp": ("--multi_gpu",), "fsdp": ("--use_fsdp", "--fsdp_version", "2")}
SETTINGS = {  # three rows a step: two processes cannot divide them evenly
    "learning_rate": 1e-3, "tokens": 9000, "sequence_length": 160, "rows_per_step": 3, "save_every": 2,
    "validate_every": 5,
}  # fmt: skip
SHORT = SETTINGS | {"tokens": 5000}  # a mask moves twice


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with distilled `data` and the drafter `half`, pruned to 2:4."""
    folder = tmp_path_factory.mktemp("made")
    distill(str(tiny_checkpoint), "demo:train", folder / "data", limit=40, max_new_tokens=8)
    prune(str(tiny_checkpoint), folder / "half", "demo:train", pattern="2:4", tokens=512, sequence_length=64)
    return folder


@pytest.fixture(scope="module")
def alone(made: Path) -> Path:
    """What one process makes."""
    settings = Settings(**SETTINGS)  # type: ignore[arg-type]
    finetune(str(made / "half"), str(made / "data"), made / "alone", settings=settings, validation_prompts=4)
    return made / "alone"


def command(made: Path, out: Path, *extra: str, settings: Mapping[str, float] = SETTINGS) -> list[str]:
    """The options of `sparsedraft finetune` for the settings."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [
        "finetune",
        str(made / "half"),
        str(made / "data"),
        "--out",
        str(out),
        "--validation-prompts=4",
        "--dtype=float32",
        *options,
        *extra,
    ]


def launched(way: str, *program: str, **options) -> subprocess.Popen:
    """Two processes of `program` by accelerate's own launcher."""
    launcher = (sys.executable, "-m", "accelerate.commands.launch", *WAYS[way], "--num_processes", "2")
    ports = ("--main_process_port", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen([*launcher, *ports, *program], **{**pipes, **options})


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); no hang."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err


def ranks(
    way: str, folder: Path, *words: object, folders: tuple[Path | None, ...] = (None, None), **options: Any
) -> tuple[list[int], str, str]:
    """(exit codes, stdout, stderr) of two forked processes with what accelerate's launcher would tell them."""
    launch = launch_command_parser().parse_args([*WAYS[way], "--num_processes", "2", "script"])
    args, *_ = _validate_launch_command(launch)
    rendezvous = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    shared = prepare_multi_gpu_env(args) | ENVIRONMENT | rendezvous
    processes = [
        Fork(
            *words, stdout=folder / f"stdout{rank}", stderr=folder / f"stderr{rank}", cwd=cwd,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **options,
        )
        for rank, cwd in enumerate(folders)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    out, err = ("".join((folder / f"{name}{rank}").read_text() for rank in (0, 1)) for name in ("stdout", "stderr"))
    return codes, out, err


def same_curve(folder: Path, reference: Path, tolerance: float = 1e-4) -> None:
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (folder, reference)]
    assert [sorted(entry) for entry in logs[0]] == [sorted(entry) for entry in logs[1]]
    for name in ("step", "tokens", "lr"):
        assert [e.get(name) for e in logs[0]] == [e.get(name) for e in logs[1]]
    for name in ("loss", "val_loss"):
        expected = [e.get(name, 0) for e in logs[1]]
        assert [e.get(name, 0) for e in logs[0]] == pytest.approx(expected, rel=tolerance)


def same_mask(folder: Path, drafter: Path) -> None:
    claim = claims.check_claims(checkpoint.load(folder), folder)
    assert claim == claims.claim_of(drafter)
    before, after = (load_file(f / "model.safetensors") for f in (drafter, folder))
    assert before.keys() == after.keys()
    assert all(not after[f"{name}.weight"][before[f"{name}.weight"] == 0].any() for name in claim["linears"])


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, made: Path, alone: Path, tmp_path: Path) -> None:
    """DDP by accelerate's own launcher; below, that starts FSDP, too, in the run that goes on."""
    out, logs = tmp_path / "out", tmp_path.parent / f"{tmp_path.name}.logs"
    if way == "ddp":
        code, said, err = finished(launched(way, "--module", "sparsedraft", *command(made, out)))
        codes = [code]
    else:
        logs.mkdir()
        codes, said, err = ranks(way, logs, *command(made, out))
    assert not any(codes), err[-3000:]
    assert (
        len(said.splitlines()) == 1
        and json.loads(said)["steps"] == json.loads((alone / "result.json").read_text())["steps"]
    )
    same_curve(out, alone)
    same_mask(out, made / "half")
    for name, tensor in load_file(alone / "model.safetensors").items():
        assert float((load_file(out / "model.safetensors")[name] - tensor).abs().max()) < 2e-4, name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"], "one lock, one folder, and both are put away"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in alone.iterdir())


@pytest.mark.parametrize("extra", [{"on_policy": 0.4}, {"quantize": "int8"}], ids=["on policy", "int8"])
def test_everything_that_can_be_minimised_is_the_same_sharded(made: Path, tmp_path: Path, extra: dict) -> None:
    """Rows that the drafter writes, SquareHead, quantised forwards, a mask that moves: as in one process.

    Not both at once: a code that rounds the other way can change a token that a quantised drafter writes.
    """
    target = str(json.loads((made / "data" / "provenance.json").read_text())["inputs"]["target"]["path"])
    changed = {
        "loss": "kl", "nll_weight": 0.2, "feature_weight": 1.0, "reselect_every": 4, "reselect_share": 0.2, **extra,
    }  # fmt: skip
    settings = Settings(**SHORT, **changed)  # type: ignore[arg-type]
    teachers = {"teacher": target, "feature_teacher": target}
    one = finetune(str(made / "half"), str(made / "data"), tmp_path / "one", settings=settings, validation_prompts=4,
                   **teachers)  # fmt: skip
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (changed | teachers).items()]
    codes, out, err = ranks("fsdp", tmp_path, *command(made, tmp_path / "two", *flags, settings=SHORT))
    assert codes == [0, 0], err[-3000:]
    two = json.loads(out)
    same_curve(tmp_path / "two", tmp_path / "one", tolerance=2e-3)
    if "quantize" in extra:
        assert two["quantization"]["quantized"]["val_loss"] == pytest.approx(
            one["quantization"]["quantized"]["val_loss"], rel=2e-3
        )
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    before = load_file(made / "half" / "model.safetensors")
    claim = claims.check_claims(checkpoint.load(tmp_path / "two"), tmp_path / "two")
    moved = differ = 0
    for name in claim["linears"]:
        zeros = [w[f"{name}.weight"] == 0 for w in weights]
        differ += int((zeros[0] != zeros[1]).sum())
        moved += int((zeros[1] != (before[f"{name}.weight"] == 0)).sum())
    assert moved > 1000 and differ < 0.02 * moved, "the same weights moved, but for near ties"


def test_sharded_in_bfloat16_with_all_that_can_be_asked_for(made: Path, tmp_path: Path) -> None:
    """Checkpointed activations, early stopping and frozen embeddings, sharded: as in one process."""
    extra = ("--dtype=bfloat16", "--gradient-checkpointing", "--patience=1", "--no-train-embeddings")
    changed = {"gradient_checkpointing": True, "patience": 1, "train_embeddings": False}
    settings = Settings(**SETTINGS, **changed)  # type: ignore[arg-type]
    options = {"settings": settings, "validation_prompts": 4, "dtype": "bfloat16"}
    expected = finetune(str(made / "half"), str(made / "data"), tmp_path / "one", **options)
    codes, out, err = ranks("fsdp", tmp_path, *command(made, tmp_path / "two", *extra))
    assert codes == [0, 0], err[-3000:]
    got = json.loads(out)
    assert got["val_loss"] == pytest.approx(expected["val_loss"], rel=0.02)
    same_mask(tmp_path / "two", made / "half")
    embeddings = [
        load_file(f / "model.safetensors")["model.embed_tokens.weight"] for f in (made / "half", tmp_path / "two")
    ]
    assert (embeddings[0] == embeddings[1]).all()


def saved_step(work: Path) -> int:
    """The step of the newest state in a folder that somebody is training in; 0 where there is none."""
    found = [0]
    for name in (STATE, BEFORE):
        # safetensors opens the file twice: it may be renamed in between
        with contextlib.suppress(FileNotFoundError, RuntimeError), safe_open(work / name, "pt") as file:
            found.append(int(file.metadata()["step"]))
    return max(found)


def test_runs_go_on_with_another_number_of_processes(made: Path, alone: Path, tmp_path: Path) -> None:
    """FSDP loses a process, one process goes on and is killed, DDP ends the run: the curve is that of one process."""
    out = tmp_path / "out"
    work = tmp_path / ".out.partial"

    def until(step: int, process: subprocess.Popen | Fork) -> None:
        while saved_step(work) < step:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.01)

    with open(tmp_path / "log", "w") as log:
        sharded = launched("fsdp", "--module", "sparsedraft", *command(made, out), stdout=log, stderr=log)
    until(2, sharded)
    workers = psutil.Process(sharded.pid).children()
    next(w for w in workers if w.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    assert sharded.wait(timeout=120) != 0, "the other does not wait for ever"
    first = saved_step(work)
    single = Fork(*command(made, out), stdout=tmp_path / "log", stderr=tmp_path / "log")
    until(first + 4, single)
    single.kill()
    single.wait()
    second = saved_step(work)
    assert 2 <= first < second < json.loads((alone / "result.json").read_text())["steps"], "each did a part"
    codes, _, err = ranks("ddp", tmp_path, *command(made, out))
    assert codes == [0, 0], err[-3000:]
    same_curve(out, alone)
    same_mask(out, made / "half")


def test_what_one_process_lacks_stops_both_with_one_sentence(made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(made / "half", tmp_path / "here" / "half")
    words = ["finetune", "half", made / "data", "--out", tmp_path / "out"]
    codes, out, err = ranks("ddp", tmp_path, *words, folders=(tmp_path / "here", tmp_path / "elsewhere"))
    assert codes == [2, 0] and out == "", "the main one speaks, and a launcher stops all that go on"
    assert err.count("error: ") == 1 and "no such folder" in err
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def diverging() -> int:
    """A fine-tuning whose loss diverges; its drafter, data and folder are sys.argv's."""
    half, data, out = sys.argv[1:]
    rising = Settings.model_construct(
        learning_rate=1e8, clip=1e30, warmup=1.0, tokens=9000, sequence_length=160, save_every=1
    )
    return guarded(lambda: finetune(half, data, Path(out), settings=rising, validation_prompts=4))


def test_divergence_in_two_processes_leaves_one_last_good_checkpoint(made: Path, tmp_path: Path) -> None:
    codes, _, err = ranks("fsdp", tmp_path, made / "half", made / "data", tmp_path / "out", main=diverging)
    assert codes == [2, 0] and err.count("makes the loss diverge") == 1
    assert str(tmp_path / "out.last-good") in err.replace("\n", "")
    same_mask(tmp_path / "out.last-good", made / "half")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["out.last-good"]
