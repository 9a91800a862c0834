"""What finetuning_earlier starts: training that takes a step for each line on stdin, on the modules of PYTHONPATH.

    PYTHONPATH=SOURCES/src python finetuning_worker.py CHECKPOINT SAMPLES SETTINGS DTYPE THREADS FOLDER

SAMPLES: JSON of [prompt ids, answer ids] pairs; SETTINGS: of the loop's settings. It prints a JSON line a step: seconds
and loss, and the largest resident bytes so far.
"""

import json
import resource
import sys
import time
from pathlib import Path


def work(checkpoint: str, samples: str, settings: str, dtype: str, threads: str, folder: str) -> None:
    import torch

    from sparsedraft.base import processes
    from sparsedraft.models.decoder import decoder_linears
    from sparsedraft.native.loading import load
    from sparsedraft.stages.finetune import loop
    from sparsedraft.stages.finetune.masks import masks_of
    from sparsedraft.text.sample import Sample

    torch.set_num_threads(int(threads))
    pairs = json.loads(Path(samples).read_text())
    rows = [Sample(str(number), *pair) for number, pair in enumerate(pairs)]
    with processes.open_accelerator("cpu", dtype) as accelerator:
        model = load(checkpoint)
        masks = masks_of(model, list(decoder_linears(model)))
        started = 0.0

        def after_step(step: int) -> None:
            nonlocal started
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            print(json.dumps({"seconds": seconds if step > 1 else None, "bytes": peak}), flush=True)
            if not sys.stdin.readline():
                sys.exit()
            started = time.perf_counter()

        task = loop.Task(model, masks, rows[1:], rows[:1])
        result = loop.train(
            task, loop.Settings(**json.loads(settings)), Path(folder), accelerator=accelerator, after_step=after_step
        )
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        curve = [entry["loss"] for entry in log if "loss" in entry]
        print(json.dumps({"losses": curve, "val_loss": result["val_loss"]}), flush=True)


if __name__ == "__main__":
    # an editable install finds its own modules before those of PYTHONPATH
    sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "known_source_files")]
    work(*sys.argv[1:])
