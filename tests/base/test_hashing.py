"""Orders and seeds by hash: they are stored in data and logs, so their bits must never change."""

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.hashing import SAMPLE, SAMPLES, file_hash, sampled_hash, seed_of, stable_order, text_hash


def test_the_hash_is_sha_256(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "file").write_bytes(b"")
    assert file_hash(tmp_path / "file") == text_hash("") == empty
    (tmp_path / "file").write_text("täxt", encoding="utf-8")
    assert file_hash(tmp_path / "file") == text_hash("täxt")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True), st.randoms())
def test_each_keeps_its_place_among_any_others(names: list[str], random) -> None:
    order = stable_order(names, str)
    shuffled = random.sample(names, len(names))
    assert stable_order(shuffled, str) == order
    fewer = set(shuffled[: len(shuffled) // 2])
    assert stable_order(fewer, str) == [name for name in order if name in fewer]


def test_equal_keys_stay_as_they_come() -> None:
    assert stable_order([("a", 2), ("a", 1)], lambda pair: pair[0]) == [("a", 2), ("a", 1)]


def test_seeds_are_those_of_earlier_versions() -> None:
    """As distilled data holds them: 7 bytes, big-endian, of the parts with "/" between them."""
    assert seed_of(0, "demo/1") == seed_of("0/demo/1") == int(hashlib.sha256(b"0/demo/1").hexdigest()[:14], 16)
    assert seed_of(3, 7, 1) == 5170078584366598 and seed_of(0, "a") == 59427965909845092
    assert all(0 <= seed_of(0, i) < 2**56 for i in range(100))


def test_a_sample_tells_files_apart_that_differ_at_either_end_or_in_size(tmp_path: Path) -> None:
    file, size = tmp_path / "file", SAMPLES * SAMPLE * 3
    data = bytearray(size)
    file.write_bytes(data)
    found = {sampled_hash(file)}
    for place in (0, size - 1):
        data[place] ^= 1
        file.write_bytes(data)
        found.add(sampled_hash(file))
    for other in (data[:-1], data[:SAMPLE], b""):
        file.write_bytes(other)
        found.add(sampled_hash(file))
    assert len(found) == 6
    file.write_bytes(data)
    assert sampled_hash(file) in found, "the same bytes again"
