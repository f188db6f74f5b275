"""What a point of the benchmark of growth measures, and what is made of the points."""

import json
import math
import sys
from dataclasses import asdict, replace

import bench_growth
import pytest
import torch
from bench_growth import Point, build_work, exponent, growth_of, in_fresh_process, main, table_of

from maws_hf.evaluation.flops import image_tower_flops, mae_training_flops
from maws_hf.evaluation.memory_plan import plan_memory
from maws_hf.evaluation.memory_stages import Setting

SMALL = Point("vit_tiny16", batch=2, image_size=64, mask_ratio=0.5, rounds=1)


def test_an_exponent_is_that_of_the_power_law():
    costs = [1, 2, 4, 32]
    assert exponent(costs, [3 * cost**1.7 for cost in costs]) == pytest.approx(1.7)
    assert math.isnan(exponent(costs, [1, 2, 0, 3]))


def test_the_step_trains_and_the_encoder_does_not():
    work = build_work(SMALL)
    losses = [work.step().item() for _ in range(4)]
    assert losses[-1] < losses[0]
    features = work.encode()
    assert features.shape == (2, 192)
    assert torch.equal(work.encode(), features)
    work.step()
    assert not torch.equal(work.encode(), features)


def record(point: Point, seconds: float) -> dict:
    plan = plan_memory(point.config, Setting("mae", point.batch))
    memory = {"plan_peak": plan.peak, "plan_standing": plan.standing, "parameters": plan.parameters}
    memory |= {f"{work}_{kind}": size * 2**20 for work in ("mae", "encoder") for kind, size in SIZES.items()}
    flops = {"mae_flops": point.batch * mae_training_flops(point.config)}
    flops["encoder_flops"] = point.batch * image_tower_flops(point.config)
    return {**vars(point), **memory, **flops, "mae_seconds": seconds, "encoder_seconds": seconds / 2}


SIZES = {"peak": 10.0, "standing": 4.0}


def test_the_table_is_a_batch_divided_by_its_images():
    point = replace(SMALL, batch=4)
    row = [cell.strip() for cell in table_of("batch", [record(point, 2.0)]).splitlines()[2].split("|")]
    assert row[1] == "4"
    assert row[2] == "500.00"
    assert float(row[3]) == pytest.approx(4 * mae_training_flops(point.config) / 2.0 / 1e9, abs=0.06)
    assert row[4:6] == ["10", "1.50"]
    assert row[8] == "250.00"
    assert table_of("batch", [record(replace(point, device="cuda:1"), 0.002)]).count(" 0.5000 ") == 1


@pytest.mark.parametrize(("device", "batch"), [("cpu", 8), ("cuda:1", 128)])
def test_a_point_is_measured_on_the_gpu_and_with_the_batch_that_it_names(
    device: str, batch: int, gpu, monkeypatch: pytest.MonkeyPatch, capsys
):
    chosen = []
    monkeypatch.setattr(bench_growth, "use_device", lambda *options: chosen.append(options))
    monkeypatch.setattr(bench_growth, "in_fresh_process", lambda point, what: {"point": asdict(point)})
    monkeypatch.setattr(bench_growth, "table_of", lambda axis, records: json.dumps(records[0]["point"]))
    monkeypatch.setattr(bench_growth, "growth_of", lambda *_: "")
    command = ["bench", "--device", device, "--tf32", "--axes", "image_size", "--image_sizes", "64"]
    monkeypatch.setattr("sys.argv", command)
    main()
    printed = capsys.readouterr().out
    point = Point(**json.loads(printed.splitlines()[printed.splitlines().index("image_size") + 2]))
    assert (point.device, point.tf32, point.batch) == (device, True, batch)
    monkeypatch.setattr(bench_growth, "measure_time", lambda point: {})
    monkeypatch.setattr("sys.argv", ["bench", "--point", json.dumps(asdict(point)), "--measure", "time"])
    main()
    assert chosen == [(device, True)] * 2


def test_the_work_of_a_point_is_on_its_device(on_meta: str):
    work = build_work(replace(SMALL, device=on_meta))
    assert work.step().device.type == work.encode().device.type == on_meta


def test_the_line_of_exponents_has_time_and_operations():
    points = [replace(SMALL, image_size=side) for side in (64, 128, 256)]
    records = [record(point, point.image_size**3 / 1e6) for point in points]
    line = growth_of("image_size", records)
    operations = exponent([64, 128, 256], [mae_training_flops(point.config) for point in points])
    assert f"the side to the power of 3.00 ({operations:.2f}) in the step" in line
    assert growth_of("image_size", records[:1]) == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from Linux")
def test_the_memory_of_a_fresh_process_is_what_was_planned():
    point = replace(SMALL, batch=24, image_size=224, mask_ratio=0.75)
    measured = in_fresh_process(point, "memory")
    plan = plan_memory(point.config, Setting("mae", 24))
    assert measured["mae_peak"] == pytest.approx(plan.peak, rel=0.15)
    assert measured["mae_standing"] == pytest.approx(plan.standing, rel=0.4)
    assert measured["encoder_peak"] < 0.5 * measured["mae_peak"]


def test_all_points_are_measured_once_and_drawn(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(point: Point, what: str) -> dict:
        calls.append((point, what))
        if what == "time":
            return {"mae_seconds": 0.1 * point.batch, "encoder_seconds": 0.05}
        return {f"{work}_{kind}": size * 2**20 for work in ("mae", "encoder") for kind, size in SIZES.items()}

    monkeypatch.setattr(bench_growth, "in_fresh_process", measure)
    numbers, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    command = ["bench", "--batch", "2", "--batches", "1", "2", "--image_sizes", "224", "--sizes", "vit_tiny16"]
    monkeypatch.setattr("sys.argv", [*command, "--json", str(numbers), "--output", str(picture)])
    main()
    points = [point for point, what in calls if what == "time"]
    assert len(points) == len(set(points)), "a point of two tables is one measurement"
    assert {point.mask_ratio for point in points} == {0.25, 0.5, 0.75, 0.9}
    records = json.loads(numbers.read_text())["records"]
    assert [record["batch"] for record in records if record["mask_ratio"] == 0.75] == [1, 2]
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    for axis in ("batch", "image_size", "mask_ratio", "size"):
        assert f"\n{axis}\n" in printed


@pytest.mark.parametrize(
    ("options", "error"), [("--image_sizes 96 100", "image_size=100"), ("--mask_ratio 1.5", "1.5")]
)
def test_a_model_that_is_not_possible_is_an_error_before_anything_is_measured(
    options: str, error: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["bench_growth.py", *options.split()])
    monkeypatch.setattr(bench_growth, "record_of", lambda point: pytest.fail(f"{point} was measured"))
    with pytest.raises(SystemExit, match=f"error: .*{error} is not possible"):
        main()
