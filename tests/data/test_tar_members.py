"""What a tar shard claims of its files does not decide how much memory they take."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import pytest
from datasets import load_dataset

from maws_hf.data import tar_members
from maws_hf.data.sources import DataSourceError, open_stream
from maws_hf.data.tolerance import ReadError, collect_losses
from maws_hf.processing import DecodeLimits

MORE = {"GNU.sparse.size": str(100 << 20), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,300"}


def write_tar(file: Path, samples: int = 8, *, odd: dict[str, str] | None = None, **options) -> Path:
    """Samples with a picture and a text; the last but one picture has other PAX headers."""
    with tarfile.open(file, **{"mode": "w", "format": tarfile.PAX_FORMAT, **options}) as tar:
        for number in range(samples):
            for kind in ("png", "txt"):
                member = tarfile.TarInfo(f"folder/{number}.{kind}")
                member.size = 300 + 100 * number if kind == "png" else 5 + number
                if odd and kind == "png" and number == samples - 2:
                    member.pax_headers = odd | {"GNU.sparse.name": member.name}
                tar.addfile(member, io.BytesIO(bytes([65 + number]) * member.size))
    return file


def keys(stream) -> list[str]:
    return [sample["__key__"] for sample in stream]


def lengths(stream) -> list[int | None]:
    return [sample["png"]["bytes"] and len(sample["png"]["bytes"]) for sample in stream]


@pytest.mark.parametrize("odd", [MORE, {**MORE, "GNU.sparse.map": "many"}], ids=["a hundred megabytes", "no number"])
def test_a_sparse_file_damages_its_shard_and_is_never_read(odd, tmp_path: Path):
    write_tar(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", odd=odd)
    with collect_losses() as losses:
        assert len(lengths(open_stream(tmp_path))) == 8 + 5
    (loss,) = losses
    assert loss.shard == str(tmp_path / "b.tar")
    assert "folder/6.png is a sparse file of 104857600 bytes" in loss.reason or "a header is damaged" in loss.reason
    with pytest.raises(ReadError, match=r"b\.tar is damaged after 5 parts"):
        list(open_stream(tmp_path / "b.tar"))
    with pytest.raises(DataSourceError, match=r"cannot be opened: ReadError: .*columns are learnt from .*c\.tar"):
        open_stream(write_tar(tmp_path / "c.tar", samples=3, odd=odd))


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_refused_with_what_to_do(compression, tmp_path: Path):
    write_tar(tmp_path / "a.tar", mode=f"w:{compression}")
    with pytest.raises(DataSourceError, match=r"it is compressed: unpack it .* from a\.tar"):
        open_stream(tmp_path)
    (tmp_path / "a.tar").unlink()
    write_tar(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with collect_losses() as losses:
        assert len(list(open_stream(tmp_path))) == 8
    assert "unpack it" in losses[0].reason


def test_a_long_image_is_cut_where_the_decoder_refuses_it_and_another_long_file_is_missing(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(tar_members, "DEFAULT_LIMITS", DecodeLimits(max_bytes=900))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(8):
            for kind, size in (("png", 300 + 100 * number), ("txt", 2000 if number > 5 else 5)):
                member = tarfile.TarInfo(f"{number}.{kind.upper() if number > 6 else kind}")
                member.size = size
                tar.addfile(member, io.BytesIO(b"a" * size))
    message = r"a\.tar: 6\.txt cannot be decoded \(its 2000 bytes are more than 900\): it counts as missing"
    with pytest.warns(UserWarning, match=message) as told:
        rows = list(open_stream(tmp_path))
    assert len([warning for warning in told if "counts as missing" in str(warning.message)]) == 1
    assert [len(row["png"]["bytes"]) for row in rows] == [300, 400, 500, 600, 700, 800, 900, 901]
    assert [row["txt"] for row in rows] == ["aaaaa"] * 6 + [None] * 2


def test_files_that_are_not_read_may_be_among_the_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tar_members, "DEFAULT_LIMITS", DecodeLimits(max_bytes=900))
    contents = {"png": b"a" * 300, "mp4": b"b" * 9, "json.GZ": gzip.compress(b"{}")}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(8):
            for kind, content in contents.items():
                content = b"b" * 2000 if (number, kind) == (1, "mp4") else content
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.warns(UserWarning, match=r"0\.json cannot be decoded \(it is a \.GZ file: pack it uncompressed\)"):
        rows = list(open_stream(tmp_path))
    assert [row["mp4"] and row["mp4"]["bytes"] for row in rows] == [b"b" * 9, None, *[b"b" * 9] * 6]
    assert {row["json"] for row in rows} == {None}
    assert lengths(rows) == [300] * 8


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_ordinary_shard_is_what_datasets_makes_of_it(form, tmp_path: Path):
    file = write_tar(tmp_path / "a.tar", format=form)
    with tarfile.open(file, "a", format=form) as tar:
        for name, kind in (
            (".hidden.png", tarfile.REGTYPE),
            ("empty/", tarfile.DIRTYPE),
            ("link.png", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            tar.addfile(member)
    theirs = load_dataset("webdataset", data_files=str(file), streaming=True, split="train").decode(False)
    ours = open_stream(file)
    again = pickle.loads(pickle.dumps(ours))  # noqa: S301 - as it goes to a data worker
    assert list(again) == list(ours) == list(theirs)
