"""Some of the damaged folders of fuzz_packed.py, which `make fuzz` and `make sanitize` make many more of."""

import pytest

import fuzz_packed
import packed_folders


@pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
def test_damaged_folders_are_refused_or_load() -> None:
    found = fuzz_packed.run(range(400), seed=1)
    assert found["refused"] > 150 and found["loaded"] > 50, "damage is found, and some of it harms nothing"
