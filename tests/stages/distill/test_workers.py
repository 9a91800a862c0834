"""`distill --workers`: Ray's actors write the same rows as one process, whatever dies on the way."""

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from commands import GREEDY, ended, run, running, units_so_far, wait_until
from faults import proxied, refused
from forks import Fork
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.stages.distill import ray_workers
from sparsedraft.stages.distill.job import Job
from sparsedraft.text import dataset, prompts
from stages import distill
from transformers_server import ASKED, ENVIRONMENT

LONG = {"max_new_tokens": 120, "batch_size": 1, "limit": 12}  # a unit is two conversations, and takes its time
UNITS = 6


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}  # Ray lets in who has the same


@dataclass
class Cluster:
    """Ray on this machine, started by `process`, which does nothing else; it writes its address to the file `where`."""

    process: Fork
    where: Path

    @property
    def env(self) -> dict[str, str]:
        """What leads a command there, once it is up."""
        address = wait_until(lambda: self.where.exists() and self.where.read_text(), self.process, self.where)
        return {**TOKEN, "RAY_ADDRESS": address}

    def workers(self, name: str = "_Worker") -> list[psutil.Process]:
        """The processes of actors of this class; by default those that write rows."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if name in " ".join(child.cmdline())]


def host() -> None:
    """Start Ray as `--workers 2` does, write its address to the file that sys.argv names, and keep it and an actor."""
    with ray_workers._ray(2) as ray:
        actor = ray.remote(type("Companion", (), {})).remote()
        ray.get(actor.__ray_ready__.remote())
        Path(sys.argv[1]).write_text(ray.get_runtime_context().gcs_address)
        signal.pause()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    where = tmp_path_factory.mktemp("ray") / "address"
    env = {**ENVIRONMENT, **GREEDY, **TOKEN}
    process = Fork(where, stdout=Path(f"{where}.stdout"), stderr=Path(f"{where}.stderr"), env=env, main=host)
    try:
        yield Cluster(process, where)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_rows_are_those_of_one_process_whatever_is_killed(
    cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The command, which goes on with workers; then a worker."""
    one, out = tmp_path / "one", tmp_path / "many"
    distill(str(tiny_checkpoint), "demo:train", one, **LONG)
    options = [word for name, value in LONG.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["distill", tiny_checkpoint, "demo:train", *options]
    with running(out, *words) as process:
        wait_until(lambda: units_so_far(out), process, out)
    kept = units_so_far(out)
    assert 0 < kept < UNITS
    with running(out, *words, "--workers", 2, env=cluster.env) as process:
        wait_until(lambda: units_so_far(out) > kept, process, out)
        cluster.workers()[0].send_signal(signal.SIGKILL)
        assert units_so_far(out) < UNITS, "killed at work"
        said, told = ended(process, out)
    assert json.loads(said.splitlines()[-1])["rows"] == len(dataset.read(one))
    assert "Traceback" not in told
    for name in ("data-00000.parquet", "result.json"):
        assert (out / name).read_bytes() == (one / name).read_bytes()


RECIPE = """
target: {target}
distill: {{prompts: {prompts}, max_new_tokens: 12}}
drafters: [{{name: cut, drop_layers: {{layers: 1}}}}]
prune: {{tokens: 64, sequence_length: 32}}
eval: {{k: [1], max_new_tokens: 4, limit: 2}}
"""


@pytest.mark.slow
def test_workers_of_a_server_in_a_recipe_and_a_refusal(
    cluster: Cluster, talker: Path, served: str, tmp_path: Path
) -> None:
    """What an actor finds to be the user's mistake is one sentence here; the same command goes on."""
    source, recipe, out = tmp_path / "prompts.jsonl", tmp_path / "recipe.yaml", tmp_path / "out"
    source.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED)))
    recipe.write_text(RECIPE.format(target=talker, prompts=source))
    distill(str(talker), str(source), tmp_path / "own", max_new_tokens=12)

    with proxied(served) as proxy:
        proxy.faults.extend([None] * 4)
        proxy.always = refused(400, "too long")
        server = {"engine": "endpoint", "url": proxy.url, "served_name": "tiny/talker", "concurrency": 2}
        words = ["run", recipe, *(f"distill.{name}={value}" for name, value in server.items())]
        said, told = run(out, *words, "distill.workers=2", code=2, env=cluster.env)
        assert said == "" and "error: the server at --url" in told and "answers 400" in told and "to prompt p" in told
        assert "Traceback" not in told
        kept, before = units_so_far(out / "distilled"), len(proxy.posts())
        assert 0 < kept <= 4
        proxy.always = None
        said, told = run(out, *words, "distill.workers=1")  # how many write is no part of what they write
        assert len(proxy.posts()) == before + len(ASKED) - kept
    assert json.loads(said.splitlines()[-1])["drafters"][0]["name"] == "cut"
    rows, own = (dataset.read(folder) for folder in (out / "distilled", tmp_path / "own"))
    assert {row.pop("engine") for row in rows} == {"endpoint"} and {row.pop("engine") for row in own} == {
        "transformers"
    }
    assert sorted(rows, key=lambda row: row["id"]) == sorted(own, key=lambda row: row["id"])


@pytest.mark.slow
def test_workers_go_with_the_process_that_started_ray(cluster: Cluster) -> None:
    assert cluster.env
    at_work = cluster.workers("Companion")
    cluster.process.kill()
    _, left = psutil.wait_procs(at_work, timeout=60)
    assert at_work and not left


def job(folder: Path) -> Job:
    return Job(folder, "respond", "transformers", None, Sampling(), Sampling(1.0), 4, 1, 0, 4, 0, "cpu", "float32")


def batch(number: int) -> dict[str, np.ndarray]:
    unit = [prompts.Prompt(f"p{number}", (ASKED[0],))]
    return {"unit": np.array([number]), "prompts": np.array([json.dumps([asdict(prompt) for prompt in unit])])}


def test_a_worker_sends_rows_or_what_is_wrong(tiny_checkpoint: Path, tiny_llama, tokenizer, tmp_path: Path) -> None:
    good = ray_workers._Worker(job(tiny_checkpoint), 1)(batch(3))
    assert good["unit"] == [3] and good["failed"] == [""] and json.loads(good["rows"][0])[0]["id"] == "p3/0"
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(torch.inf).nan_to_num_(3e38)  # finite, but what follows is not
    checkpoint.save(model, tokenizer, tmp_path / "wild")
    assert "the logits of prompt p0/0 hold NaN" in ray_workers._Worker(job(tmp_path / "wild"), 1)(batch(0))["failed"][0]
    missing = ray_workers._Worker(job(tmp_path / "none"), 1)(batch(0))
    assert missing["rows"] == [""] and "none" in missing["failed"][0]


def test_threads_are_shared_among_workers(tiny_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        ray_workers._Worker(job(tiny_checkpoint), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_cluster_that_is_not_there(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(Exception, match=r"RAY_ADDRESS 127\.0\.0\.1:9: no Ray cluster answers there .*: unset it\."):
        distill(str(tiny_checkpoint), "demo:train", tmp_path / "out", **LONG, workers=2)
