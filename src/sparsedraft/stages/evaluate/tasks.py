"""Leaderboard tasks on a model alone, through lm-eval (extra `lm-eval`): what pruning did to it beside drafting.

A task is one of lm-eval's names (its data comes from the hub), or a local YAML file in lm-eval's task format whose
`data_files` lie beside it. Such files may hold data only: tags that would run Python (`!function`) are refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.names import LOOKUP, split_lookup
from sparsedraft.native.loading import load
from sparsedraft.stages.evaluate.options import EvaluateOptions

LOCAL = ("json", "csv", "parquet")  # loaders of `datasets` that read plain files


def run_tasks(options: EvaluateOptions) -> dict[str, Any]:
    """Score the target and each of the drafters on `options.tasks`; {"models": [{"name", "tasks": {task: metrics}}]}.

    `limit` takes the first so many documents of each task. Raises UserError where lm-eval is not installed, a task is
    not known, a task file cannot be used, or two models have one name.
    """
    models, tasks = [("target", options.target), *options.drafters], options.tasks or ()
    seed, limit = options.seed, options.limit
    _check(models, tasks)
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("--tasks needs lm-eval: pip install 'sparsedraft[lm-eval]'.") from None
    task_configs = [_local(Path(task)) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    folders = {name: checkpoint.find(ref) for name, ref in models}

    def build(work: Path) -> dict[str, Any]:
        scores = [
            {"name": name, "path": str(folder), "tasks": _scores(folder, task_configs, options)}
            for name, folder in folders.items()
        ]
        return {"models": scores, "limit": limit}

    if options.out is None:
        return build(Path())
    inputs: dict[str, object] = {
        "models": folders,
        "tasks": task_configs,
        "data": [Path(file) for task in task_configs if isinstance(task, dict) for file in _files(task)],
        "options": {"limit": limit, "device": options.device, "dtype": options.dtype},
    }
    reads = (*(ref for _, ref in models), *tasks)
    return artifact.make(options.out, "tasks", inputs, build, seed=seed, overwrite=options.overwrite, reads=reads)


def _files(task: dict[str, Any]) -> list[str]:
    """The data files of a local task, which count by what they hold."""
    data = task["dataset_kwargs"]["data_files"]
    return [*data.values()] if isinstance(data, dict) else [data]


def _check(models: Sequence[tuple[str, str]], tasks: Sequence[str]) -> None:
    """Refuse what cannot be before anything is loaded."""
    if not tasks:
        raise UserError("--tasks names no task: give names of lm-eval or YAML files, comma-separated.")
    names = [name for name, _ in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two models are called '{twice}': name them, as in first={models[-1][1]}.")
    if no_model := next((ref for _, ref in models if ref == LOOKUP or split_lookup(ref)[1]), None):
        raise UserError(f"the drafter '{no_model}' is no model, so --tasks cannot score it: leave it out.")


def _scores(folder: Path, tasks: list[Any], options: EvaluateOptions) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    dtype, device = checkpoint.dtype_named(options.dtype), checkpoint.device_named(options.device)
    model, seed = load(folder, dtype=dtype, device=device), options.seed
    claims.check_claims(model, folder)
    harness = HFLM(pretrained=model, tokenizer=checkpoint.load_tokenizer(folder), batch_size=options.batch_size)
    try:
        results = lm_eval.simple_evaluate(
            harness, tasks=tasks, limit=options.limit, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
            fewshot_random_seed=seed, log_samples=False, bootstrap_iters=1000,
            # lm-eval reads its thousands of task files, for seconds, to know a task by its name
            task_manager=TaskManager(include_defaults=any(isinstance(task, str) for task in tasks)),
        )  # fmt: skip
    except (KeyError, ValueError, ConnectionError, FileNotFoundError) as error:
        names = ", ".join(task if isinstance(task, str) else task["task"] for task in tasks)
        raise UserError(
            f"--tasks {names} cannot be run by lm-eval ({' '.join(str(error).split())[:200]}): check the names, or "
            "give a local task file where the hub cannot be reached."
        ) from None
    return {
        task: {
            metric.removesuffix(",none"): value
            for metric, value in scores.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, scores in (results or {})["results"].items()
    }


def _local(file: Path) -> dict[str, Any]:
    """A task file as lm-eval's configuration, its data files by their full paths."""
    if not file.is_file():
        raise UserError(f"--tasks {file} is no file: name a task of lm-eval, or a YAML file in its format.")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--tasks {file} cannot be read as plain YAML ({' '.join(str(error).split())[:160]}): tags that run Python "
            "are not allowed."
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise UserError(f"--tasks {file} has no field 'task': give lm-eval's task format.")
    if config.get("dataset_path") not in LOCAL:
        raise UserError(
            f"--tasks {file} has dataset_path {config.get('dataset_path')!r}: a local task reads one of "
            f"{', '.join(LOCAL)}."
        )
    options = dict(config.get("dataset_kwargs") or {})
    data = options.get("data_files")
    parts = data.values() if isinstance(data, dict) else [data]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise UserError(f"--tasks {file} has no dataset_kwargs.data_files: name one file, or one for each split.")
    whole = {split: str(file.parent / name) for split, name in data.items()} if isinstance(data, dict) else None
    task = {**config, "dataset_kwargs": {**options, "data_files": whole or str(file.parent / str(data))}}
    if missing := next((name for name in _files(task) if not Path(name).is_file()), None):
        raise UserError(
            f"--tasks {file} names the data file {missing}, and there is none: check dataset_kwargs.data_files."
        )
    return task
