"""`maws-hf doctor`: what would fail is said, with what to do, and the rest is fine."""

import errno
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import draw_image

from maws_hf.cli import main
from maws_hf.training import health, health_data, health_disks, health_hub, health_machine
from maws_hf.training.health_data import check_dataset, images_a_second
from maws_hf.training.health_findings import Finding

ROOT = Path(__file__).parents[2]


def test_the_tested_versions_are_those_of_the_setup_and_of_the_constraints():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, (oldest, newest) in health.TESTED.items():
        assert re.search(rf'"{name}>={re.escape(oldest)}[",]', setup), name
        assert re.search(rf"^{name}=={re.escape(newest)}$", constraints, re.MULTILINE), name


@pytest.mark.parametrize(
    ("installed", "status"), [("2.10.1", "fails"), ("2.11.0", "ok"), ("2.13.9+cu130", "ok"), ("2.14.0", "warning")]
)
def test_a_version_outside_of_what_was_tested_is_told(installed: str, status: str, monkeypatch):
    monkeypatch.setattr(health, "TESTED", {"torch": ("2.11", "2.13.0")})
    monkeypatch.setattr(health.metadata, "version", lambda _: installed)
    _, torch_finding = health.check_versions()
    assert torch_finding.status == status
    assert bool(torch_finding.advice) == (status != "ok")


def test_a_missing_package_fails_if_training_needs_it(monkeypatch):
    def missing(name: str) -> str:
        raise health.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(health.metadata, "version", missing)
    found = {each.what: each for each in health.check_versions()}
    assert found["accelerate"].status == "fails"
    assert found["accelerate"].advice == 'pip install "accelerate>=1.15"'
    assert found["peft"].status == "warning"


def test_a_torchvision_that_breaks_is_told(monkeypatch):
    monkeypatch.setattr(health.metadata, "version", lambda _: "0.1")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it now raises
    torchvision, _ = health.check_optional_pieces()
    assert torchvision.status == "fails"
    assert "pip uninstall torchvision" in torchvision.advice


def test_more_threads_than_cores_is_told(monkeypatch):
    monkeypatch.setattr(health_machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    (finding,) = health_machine.check_threads()
    assert (finding.status, "OMP_NUM_THREADS=2" in finding.advice) == ("warning", True)


def test_the_attention_backends_of_a_processor_run():
    found = {each.what: each for each in health_machine.check_attention()}
    assert found["attention eager"].status == "ok"
    assert "plain" in found["attention sdpa"].found


def test_a_backend_that_raises_fails(monkeypatch):
    monkeypatch.setattr(health_machine, "_why_attention_fails", lambda name, *_: "no kernel" if name == "sdpa" else "")
    found = {each.what: each for each in health_machine.check_attention()}
    assert found["attention sdpa"].status == "fails"
    assert found["attention sdpa"].advice == "use --attn_implementation eager"


def test_in_place_of_an_attention_that_is_not_there_the_usual_one_is_advised(monkeypatch):
    monkeypatch.setattr(health_machine, "the_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(health_machine, "_kernel_runs", lambda *_: True)
    monkeypatch.setattr(health_machine, "_why_attention_fails", lambda name, *_: "no flash" if "flash" in name else "")
    found = {each.what: each for each in health_machine.check_attention()}
    assert found["attention flash_attention_2"].status == "warning"
    assert found["attention flash_attention_2"].advice == "use --attn_implementation sdpa"
    assert found["attention flex_attention"].status == "ok"


def test_a_place_that_nobody_may_write_to_is_told_with_what_to_do(tmp_path: Path, monkeypatch):
    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(health_disks.constants, "HF_HUB_CACHE", "~/cache")
    monkeypatch.setattr(health_disks.tempfile, "TemporaryFile", refuse)
    run, cache, *_ = health_disks.check_disks(tmp_path, "vit_b16", 2)
    assert "cannot be written to (Permission denied)" in run.found
    assert "--output_dir" in run.advice
    assert (cache.status, cache.advice) == ("fails", "set HF_HOME elsewhere")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of a container's user
    _, cache, *_ = health_disks.check_disks(tmp_path, "vit_b16", 2)
    assert (cache.status, cache.advice) == ("fails", "set HF_HOME elsewhere")
    assert "lies in a home that is not known" in cache.found


def test_room_is_needed_for_all_kept_checkpoints_and_one_more(tmp_path: Path, monkeypatch):
    needed = 3 * health_disks.parameters_of("vit_b16") * 12
    usage = health_disks.shutil.disk_usage(tmp_path)
    for free, status in ((needed, "ok"), (needed - 1, "fails")):
        monkeypatch.setattr(health_disks.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert next(health_disks.check_disks(tmp_path / "not" / "there", "vit_b16", 2)).status == status
    assert not (tmp_path / "not").exists()


def test_the_parameters_of_a_size_are_those_of_the_paper():
    assert health_disks.parameters_of("vit_b16") == pytest.approx(86e6 + 26e6, rel=0.03)  # encoder and decoder


def test_a_file_in_place_of_the_folder_fails(tmp_path: Path):
    (tmp_path / "run").write_text("")
    assert next(health_disks.check_disks(tmp_path / "run", "vit_b16", 2)).status == "fails"


def test_one_worker_prepares_some_images_a_second():
    assert images_a_second(0.05) > 1


def test_a_data_set_is_opened_and_decoded(tmp_path: Path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(draw_image(number))
    (finding,) = check_dataset(str(tmp_path), "train", None)
    assert finding.status == "ok"
    assert "3 of the first 3 images decode" in finding.found
    (tmp_path / "1.png").write_bytes(b"<html>")
    (finding,) = check_dataset(str(tmp_path), "train", None)
    assert (finding.status, "not a JPEG" in finding.found) == ("warning", True)
    (finding,) = check_dataset(str(tmp_path), "test", None)
    assert (finding.status, "no split 'test'" in finding.found) == ("fails", True)


def test_a_column_of_numbers_is_told_and_no_traceback(tmp_path: Path):
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "train-00000-of-00001.parquet")
    (finding,) = check_dataset(str(tmp_path), "train", "image")
    assert (finding.status, "image: it holds int64, not images" in finding.found) == ("fails", True)
    (finding,) = check_dataset(str(tmp_path), "train", None)
    assert (finding.status, "row 0: data is int" in finding.found) == ("fails", True)


def test_a_device_that_cannot_multiply_ends_no_other_check(monkeypatch):
    def broken(*_: object) -> float:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(health_data, "measure_matmul_peak", broken)
    (finding,) = health_data.check_data_path("vit_b16", seconds=0.05)
    assert "pictures of 500 x 375 a second" in finding.found


def test_fewer_checkpoints_than_a_run_keeps_are_an_error():
    with pytest.raises(SystemExit, match="--save_total_limit 1 must be at least 2"):
        main(["doctor", "--save_total_limit", "1"])


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setattr(health_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(health_hub, "HfApi", None)  # calling it would raise
    (finding,) = health_hub.check_hub()
    assert finding.status == "ok"


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    import threading

    class Silent:
        def __init__(self, token: str):
            pass

        def whoami(self) -> dict:
            threading.Event().wait(5)
            return {}

    monkeypatch.setattr(health_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(health_hub, "get_token", lambda: "hf_" + "a" * 34)
    monkeypatch.setattr(health_hub, "HfApi", Silent)
    monkeypatch.setattr(health_hub, "_PATIENCE", 0.05)
    (finding,) = health_hub.check_hub()
    assert finding.status == "warning"


@pytest.mark.parametrize(("statuses", "code"), [(["ok", "warning"], 0), (["ok", "fails"], 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_status_says_whether_something_would_fail(statuses, code: int, as_json: bool, capsys, monkeypatch):
    findings = [Finding(f"thing {status}", status, "found", "do this") for status in statuses]
    monkeypatch.setattr(health, "examine", lambda _: iter(findings))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *(["--json"] if as_json else [])])
    assert ended.value.code == code
    output = capsys.readouterr().out
    if as_json:
        assert json.loads(output)["fails"] == bool(code)
    else:
        assert [line.split()[0] for line in output.splitlines()[:2]] == statuses
        assert "-> do this" in output
