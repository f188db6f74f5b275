"""The conversion as its caller sees it: what is printed, recorded, refused, and that nothing is left behind."""

import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import torch
from leftovers import temporary_of
from tiny_originals import classifier, encoder, encoder_shapes, golden_weights, saved, text_encoder, two_towers

from maws_hf import MawsViTForImageClassification
from maws_hf.cli import main
from maws_hf.hub import conversion_process, original
from maws_hf.hub.conversion_process import run_in_child
from maws_hf.hub.conversion_steps import run_step
from maws_hf.hub.original import Conversion, ConversionError, Sizes, convert_checkpoint
from maws_hf.hub.original_archive import archive_entries
from maws_hf.hub.original_files import KNOWN_FILES

HEADS = Sizes(num_attention_heads=4)


@pytest.fixture
def in_this_process(monkeypatch):
    """Without a child's four seconds; what the child adds is tested below."""
    monkeypatch.setattr(
        original, "run_in_child", lambda request, mapped_bytes: run_step(json.loads(json.dumps(request)))
    )


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refused(file, output_dir, **options):
    before = sorted(output_dir.parent.iterdir())
    with pytest.raises(ConversionError) as error:
        convert_checkpoint(file, output_dir, **options)
    assert sorted(output_dir.parent.iterdir()) == before, "something was left behind"
    return str(error.value)


@pytest.mark.slow
def test_a_command_converts_in_a_child_process_and_says_what_to_do_next(tmp_path, capfd):
    file = saved(golden_weights("timm_vit_tiny.safetensors"), tmp_path / "mine.pt")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    folder = tmp_path / "models" / "mine"
    temporary_of(folder).mkdir(parents=True)
    options = ["--num_attention_heads", "4", "--sha256", sha256(file), "--labels", str(tmp_path / "labels.txt")]
    with pytest.raises(SystemExit) as end:
        main(["convert", str(file), "--output_dir", str(folder), *options])
    assert end.value.code == 0
    printed = capfd.readouterr().out
    assert sha256(file) in printed
    assert f'transformers.AutoModelForImageClassification.from_pretrained("{folder}")' in printed
    assert "maws-hf export" in printed
    assert "maws-hf push" in printed
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert MawsViTForImageClassification.from_pretrained(folder).config.id2label[4] == "e"
    record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    assert record["source"] == {
        "file": "mine.pt",
        "url": None,
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "sha256_was_compared": True,
    }
    assert (record["released_model"], record["architecture"]) == (None, "MawsViTForImageClassification")
    assert (record["tensors"], record["dtype"]) == (40, "float32")
    assert max(record["differences"].values()) <= 1e-5
    assert set(record["versions"]) == {"maws_hf", "torch", "transformers"}


@pytest.mark.slow
def test_a_hostile_file_is_refused_in_the_child_and_nothing_is_left(tmp_path):
    marker = tmp_path / "marker"

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    file = saved({"model": Command()}, tmp_path / "evil.pt")
    message = refused(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True)
    assert "system" in message
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="its memory is limited on Linux alone")
def test_a_child_that_dies_is_reported_with_its_signal(tmp_path, monkeypatch):
    # The child imports this one in place of the package's steps.
    package = tmp_path / "maws_hf" / "hub"
    package.mkdir(parents=True)
    for name in ("original_archive", "conversion_process"):
        source = Path(original.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        (package / f"{name}.py").write_text(source, encoding="utf-8")
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("", encoding="utf-8")
    steps = package / "conversion_steps.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = {"step": "write", "file": "a.pt"}
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('a file of the folder that one is in')")
    monkeypatch.chdir(tmp_path / "here")

    steps.write_text("import os, signal\ndef run_step(request): os.kill(os.getpid(), signal.SIGTERM)\n")
    with pytest.raises(ConversionError, match=r"to write a\.pt was ended by SIGTERM; it was allowed 2,147,483,653"):
        run_in_child(request, mapped_bytes=5)
    steps.write_text("def run_step(request): return {'hoard': len(bytearray(8 << 30))}\n")
    with pytest.raises(ConversionError, match=r"a\.pt needs more than the 2,147,483,653 bytes of memory"):
        run_in_child(request, mapped_bytes=5)
    steps.write_text("def run_step(request): print('noise'); return {'answer': 42}\n")
    assert run_in_child(request, mapped_bytes=5) == {"answer": 42}
    monkeypatch.setattr(conversion_process, "_STATM", tmp_path / "of another system")
    steps.write_text("import os, signal\ndef run_step(request): os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ConversionError, match=r"was ended by SIGKILL; no limit was set. Nothing was kept"):
        run_in_child(request, mapped_bytes=5)
    steps.write_text("raise SystemExit(3)\n")
    with pytest.raises(ConversionError, match="failed with exit status 3"):
        run_in_child(request, mapped_bytes=5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel in Linux' way")
def test_the_memory_allowed_is_what_there_is_and_so_much_more_but_never_above_the_systems(tmp_path, monkeypatch):
    def limits(hard: int) -> list[tuple[int, int]]:
        found = []
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda kind, both: found.append(both))
        conversion_process.limit_memory(5 << 40)
        return found

    (used,) = re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    ((soft, hard),) = limits(resource.RLIM_INFINITY)
    assert soft == hard == pytest.approx((5 << 40) + int(used) * 1024, abs=1 << 28)
    assert limits(9 << 40) == [(soft, soft)]
    assert limits(1 << 40) == [(1 << 40, 1 << 40)]
    monkeypatch.setattr(conversion_process, "_STATM", tmp_path / "nothing")
    assert limits(1 << 40) == []


def test_a_child_answers_with_what_went_wrong_if_that_is_known(monkeypatch):
    limits = []
    monkeypatch.setattr(conversion_process, "limit_memory", limits.append)
    monkeypatch.setattr("transformers.utils.logging.disable_progress_bar", lambda: None)

    def answer(error: Exception) -> dict:
        def run_step(request: dict) -> None:
            raise error

        monkeypatch.setattr("maws_hf.hub.conversion_steps.run_step", run_step)
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"file": "a.pt", "limit": 7000}'))
        own = os.dup(1)
        with TemporaryFile() as answers:
            os.dup2(answers.fileno(), 1)
            try:
                conversion_process.main()
            finally:
                os.dup2(own, 1)
                os.close(own)
            answers.seek(0)
            return json.load(answers)

    assert answer(ConversionError("no such layout")) == {"error": "no such layout"}
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert answer(error)["error"].startswith("a.pt needs more than the 7,000 bytes of memory")
    with pytest.raises(RuntimeError, match="sizes must match"):
        answer(RuntimeError("sizes must match"))
    assert limits == [7000] * 4


@pytest.mark.usefixtures("in_this_process")
class TestRefusals:
    def test_an_unknown_checksum_is_printed_and_has_to_be_stated(self, tmp_path, capsys):
        file = saved(encoder(), tmp_path / "mine.pt")
        message = refused(file, tmp_path / "out", sizes=HEADS)
        assert f"--sha256 {sha256(file)}" in message
        assert "--accept_unknown_sha256" in message
        assert sha256(file) in capsys.readouterr().out
        assert isinstance(
            convert_checkpoint(file, tmp_path / "out", sizes=HEADS, sha256=sha256(file).upper()), Conversion
        )

    def test_a_wrong_checksum_is_refused_whatever_else_is_said(self, tmp_path):
        file = saved(encoder(), tmp_path / "mine.pt")
        options = {"sizes": HEADS, "accept_unknown_sha256": True}
        message = refused(file, tmp_path / "out", sha256="0" * 64, **options)
        assert f"has sha256 {sha256(file)}, not the expected {'0' * 64}" in message

    def test_one_flipped_byte_is_damage_in_a_named_entry(self, tmp_path):
        file = saved(encoder(), tmp_path / "mine.pt")
        (entry,) = [entry for entry in archive_entries(file) if entry.name == "data/3"]
        content = bytearray(file.read_bytes())
        content[entry.start + entry.size // 2] ^= 0x40
        file.write_bytes(content)
        options = {"sizes": HEADS, "accept_unknown_sha256": True}
        message = refused(file, tmp_path / "out", **options)
        assert f"{file} is damaged: 1 of its entries" in message
        assert "among them data/3" in message
        assert "is damaged" in refused(file, tmp_path / "out", **{**options, "sha256": sha256(file)})

    def test_a_file_without_checksums_is_converted_and_that_is_said(self, tmp_path, capsys):
        torch.serialization.set_crc32_options(False)
        try:
            file = saved(encoder(), tmp_path / "mine.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        convert_checkpoint(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True)
        assert "holds no checksums of its tensors" in capsys.readouterr().out

    def test_the_tables_checksum_and_published_digits_are_compared(self, tmp_path, monkeypatch):
        file = saved(encoder(), tmp_path / "vit_l16_512.pt")
        known = KNOWN_FILES["maws-vit-l-ft-in1k"]
        other = {**KNOWN_FILES, known.name: type(known)(**{**vars(known), "sha256": "1" * 64})}
        monkeypatch.setattr("maws_hf.hub.original_files.KNOWN_FILES", other)
        message = refused(file, tmp_path / "out", accept_unknown_sha256=True)
        assert f"maws-vit-l-ft-in1k has {'1' * 64}" in message
        assert "get it again from https://dl.fbaipublicfiles.com/maws/finetune/in1k/maws/vit_l16_512.pt" in message
        file = saved(encoder(), tmp_path / "mae_pretrain_vit_base.pth")
        message = refused(file, tmp_path / "out", accept_unknown_sha256=True)
        assert "mae_pretrain_vit_base begins with 8cad7c" in message

    def test_a_released_name_on_other_weights_lists_what_does_not_fit(self, tmp_path):
        file = saved(encoder(), tmp_path / "vit_b16.pt")
        message = refused(file, tmp_path / "out", model="maws-vit-b", accept_unknown_sha256=True)
        assert "vit_b16.pt as maws-vit-b does not fit: missing: blocks.2.norm1.weight (768,)" in message
        assert "cls_token is (1, 1, 32), expected (1, 1, 768)" in message

    def test_an_ambiguous_name_needs_a_model_and_sizes_come_from_the_table(self, tmp_path):
        file = saved(encoder(), tmp_path / "vit_b16.pt")
        message = refused(file, tmp_path / "out", accept_unknown_sha256=True)
        assert "--model maws-vit-b-mae or --model maws-vit-b" in message
        message = refused(file, tmp_path / "out", model="maws-vit-b", sizes=HEADS, accept_unknown_sha256=True)
        assert "--num_attention_heads cannot be chosen: maws-vit-b has its sizes from the table" in message
        # Heads say that it is a file of one's own, whatever it is called.
        assert (
            convert_checkpoint(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True).record["tensors"] == 38
        )

    def test_a_folder_with_something_in_it_is_not_touched(self, tmp_path):
        file = saved(encoder(), tmp_path / "mine.pt")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("mine", encoding="utf-8")
        assert "is there already" in refused(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True)
        assert "no file" in refused(tmp_path / "nothing.pt", tmp_path / "new")

    def test_failing_late_leaves_nothing_either(self, tmp_path):
        state = encoder()
        state["norm.bias"][0] = float("nan")
        file = saved(state, tmp_path / "mine.pt")
        message = refused(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True)
        assert "1 in norm.bias" in message
        file = saved(classifier(), tmp_path / "other.pt")
        options = {"sizes": HEADS, "accept_unknown_sha256": True, "tokenizer_name_or_path": "somewhere"}
        assert "has no text tower" in refused(file, tmp_path / "out", **options)

    def test_a_file_that_changes_meanwhile_is_refused(self, tmp_path, monkeypatch):
        file = saved(encoder(), tmp_path / "mine.pt")
        steps = original.run_in_child

        def touching(request, mapped_bytes):
            os.utime(file, ns=(1, 1))
            return steps(request, mapped_bytes)

        monkeypatch.setattr(original, "run_in_child", touching)
        assert "was changed while" in refused(file, tmp_path / "out", sizes=HEADS, accept_unknown_sha256=True)

    def test_large_files_are_compared_only_if_asked(self, tmp_path, monkeypatch):
        file = saved(encoder(), tmp_path / "mine.pt")
        options = {"sizes": HEADS, "accept_unknown_sha256": True}
        for limit, verify, compared in (
            (10**9, None, True),
            (10, None, False),
            (10, True, True),
            (10**9, False, False),
        ):
            monkeypatch.setattr(original, "VERIFY_UP_TO", limit)
            done = convert_checkpoint(file, tmp_path / f"{limit}{verify}", verify=verify, **options)
            assert (done.record["differences"] is not None) is compared

    def test_a_record_says_whether_the_checksum_was_compared_and_where_the_tokenizer_is_from(
        self, tmp_path, monkeypatch
    ):
        file = saved(two_towers(), tmp_path / "mine.pt")
        options = {"sizes": Sizes(num_attention_heads=4, text_num_attention_heads=3), "verify": False}
        accepted = convert_checkpoint(file, tmp_path / "accepted", accept_unknown_sha256=True, **options)
        assert accepted.record["source"]["sha256_was_compared"] is False
        assert accepted.record["tokenizer"] is None
        monkeypatch.setattr(original, "add_tokenizer", lambda folder, name: None)
        options["tokenizer_name_or_path"] = "org/tokenizer"
        stated = convert_checkpoint(file, tmp_path / "stated", sha256=sha256(file), **options)
        assert stated.record["source"]["sha256_was_compared"] is True
        assert stated.record["tokenizer"] == "org/tokenizer"

    def test_what_is_no_checksum_is_refused_before_the_file_is_read(self, tmp_path):
        file = saved(encoder(), tmp_path / "mine.pt")
        for wrong in ("abc", "0" * 63, "g" * 64):
            assert f"--sha256 {wrong} is no sha256" in refused(file, tmp_path / "out", sizes=HEADS, sha256=wrong)

    def test_how_a_known_decoder_was_trained_may_be_said(self, tmp_path):
        file = saved(encoder(), tmp_path / "mae_visualize_vit_base.pth")
        options = {"sizes": Sizes(norm_pix_loss=True), "accept_unknown_sha256": True}
        assert "its tensors are those of an encoder alone" in refused(file, tmp_path / "out", **options)

    def test_two_towers_without_a_tokenizer_say_what_adds_it(self, tmp_path):
        file = saved(two_towers(), tmp_path / "mine.pt")
        sizes = Sizes(num_attention_heads=4, text_num_attention_heads=3)
        done = convert_checkpoint(file, tmp_path / "out", sizes=sizes, accept_unknown_sha256=True, verify=False)
        assert f'add("{tmp_path / "out"}", "FacebookAI/xlm-roberta-base")' in str(done)
        assert "not compared" in str(done)


def test_a_file_with_the_checksum_of_the_table_is_recorded_as_that_of_its_address(tmp_path, monkeypatch):
    file = saved(encoder(), tmp_path / "vit_l16_512.pt")
    known = KNOWN_FILES["maws-vit-l-ft-in1k"]
    table = {known.name: replace(known, sha256=sha256(file))}
    monkeypatch.setattr("maws_hf.hub.original_files.KNOWN_FILES", table)
    written = {"layout": "classifier", "architecture": "MawsViTForImageClassification", "dtype": "float32"}
    written |= {"tensors": 1, "parameters": 1, "left_out": []}
    monkeypatch.setattr(original, "run_in_child", lambda request, mapped_bytes: written)
    record = convert_checkpoint(file, tmp_path / "out", verify=False).record
    assert record["released_model"] == known.name
    assert record["source"]["sha256_was_compared"] is True
    assert record["source"]["url"] == known.url


PROBE = """
import sys
from pathlib import Path
from maws_hf.hub.conversion_process import ROOM, limit_memory
from maws_hf.hub.conversion_steps import write_native
from maws_hf.hub.original_sizes import Sizes
file, folder, known = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None
def peak():  # of this program; getrusage would begin with that of the process it was forked from
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
before = peak()
limit_memory(file.stat().st_size + ROOM)
sizes = Sizes() if known else Sizes(num_attention_heads=12, text_num_attention_heads=12)
write_native(file, folder, known=known, sizes=sizes)
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel in Linux' way")
@pytest.mark.parametrize("model", ["maws-vit-b", ""])
def test_the_full_size_of_vit_b_is_converted_in_less_memory_than_the_file_has(tmp_path, model):
    """The released encoder's sizes, and two towers with XLM-R base of a short vocabulary."""
    vision = {"width": 768, "depth": 12, "patch": 16, "patches": 196, "intermediate": 3072}
    if model:
        state = {name: torch.randn(shape) * 0.02 for name, shape in encoder_shapes(**vision).items()}
    else:
        text = text_encoder(768, 12, 12, vocabulary=1000, positions=514, intermediate=3072)
        state = two_towers(text, dim=768, **vision)
    file = saved(state, tmp_path / "vit_b16.pt")
    del state
    (tmp_path / "folder").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(file), str(tmp_path / "folder"), model],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak = map(int, done.stdout.split())
    size = file.stat().st_size
    assert size > 340e6
    assert peak - before < 0.3 * size
    print(f"{size / 1e6:.0f} MB: {before / 1e6:.0f} MB before, {peak / 1e6:.0f} MB at most")
