"""Every benchmark of the demo's size, one after the other; about 20 minutes on 2 cores."""

import demo
import finetuning
import generation
import simulation
from common import close, setup

if __name__ == "__main__":
    setup()
    close([line for benchmark in (generation, finetuning, simulation, demo) for line in benchmark.main()])
