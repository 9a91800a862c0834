"""Some of the damage of fuzz_packed.py and fuzz_cached.py, of which `make fuzz` and `make sanitize` do many more."""

import pytest

import fuzz_cached
import fuzz_packed
import packed_folders


@pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
def test_damaged_folders_are_refused_or_load() -> None:
    found = fuzz_packed.run(range(100), seed=1)
    assert found["refused"] > 37 and found["loaded"] > 12, "damage is found, and some of it harms nothing"


@pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
def test_damaged_caches_are_used_as_far_as_they_are_sound() -> None:
    found = fuzz_cached.run(range(100), seed=1)
    assert min(found["used"], found["used in part"], found["made again"]) > 10, "some damage is found at each place"
