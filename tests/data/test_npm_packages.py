"""Where packages are kept, and what npm's failures say."""

import sys
from pathlib import Path

import pytest

from maws_hf.data import npm_packages
from maws_hf.data.corpus import CorpusError


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert npm_packages.cache_dir() == tmp_path / "mine" / "maws_hf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert npm_packages.cache_dir() == tmp_path / ".cache" / "maws_hf"


def test_without_a_place_for_the_cache_it_is_said_how_to_give_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CorpusError, match=r"no place for downloads .*Not a directory.*: set XDG_CACHE_HOME to"):
        npm_packages.cache_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a container's user
    with pytest.raises(CorpusError, match=r"no place for downloads .*home directory.*: set XDG_CACHE_HOME to"):
        npm_packages.cache_dir()


def test_a_folder_that_nobody_may_write_to_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"file/cache cannot be written to \(Not a directory\): .*XDG_CACHE_HOME"):
        npm_packages.make_staging(tmp_path / "file" / "cache" / "node_modules")


def test_words_that_are_no_utf8_do_not_hide_why_npm_failed(tmp_path: Path):
    program = r"import sys; sys.stderr.buffer.write(b'no room for J\xf6rg\n'); sys.exit(3)"
    with pytest.raises(CorpusError, match="exit status 3: no room for J\N{REPLACEMENT CHARACTER}rg"):
        npm_packages._run([sys.executable, "-c", program], tmp_path)
