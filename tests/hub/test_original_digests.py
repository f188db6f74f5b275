"""One pass over a file tells its digests and which of its entries are damaged."""

import hashlib
import zipfile

import pytest

from maws_hf.hub import original_digests
from maws_hf.hub.original_digests import digests_of


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_entries_are_told_apart_wherever_the_blocks_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(original_digests, "_BLOCK", block)
    file = tmp_path / "file.pt"
    with zipfile.ZipFile(file, "w") as archive:
        for name, size in (("a", 100), ("empty", 0), ("b", 1), ("c", 33)):
            archive.writestr(f"top/{name}", name[:1].encode() * size)
    content = file.read_bytes()
    found = digests_of(file)
    assert (found.damaged, found.has_checksums) == ([], True)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()
    for name, text in (("a", b"a" * 100), ("c", b"c" * 33)):
        place = content.index(text) + len(text) - 1
        file.write_bytes(content[:place] + b"!" + content[place + 1 :])
        assert digests_of(file).damaged == [name]


def test_what_is_no_archive_has_digests_only(tmp_path):
    for name in ("file.safetensors", "file.pt"):
        (tmp_path / name).write_bytes(b"no archive")
        found = digests_of(tmp_path / name)
        assert found.sha256 == hashlib.sha256(b"no archive").hexdigest()
        assert (found.damaged, found.has_checksums) == ([], False)
