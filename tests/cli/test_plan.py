"""`maws-hf plan`."""

import json
import re

import pytest

from maws_hf.cli import main

LARGE = ["plan", "--size", "vit_6.5b14", "--task", "mae", "--batch", "64"]


def run(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code or 0, capsys.readouterr().out


def test_it_says_what_fits(capsys: pytest.CaptureFixture):
    code, output = run([*LARGE, "--gpus", "8", "--fsdp"], capsys)
    assert code == 0
    assert "6,475.3 M parameters" in output
    assert "64 images a device fit; the most that fit: " in output


def test_it_says_and_exits_with_1_if_nothing_fits(capsys: pytest.CaptureFixture):
    code, output = run(LARGE, capsys)
    assert code == 1
    assert "64 images a device do NOT fit; not even one fits" in output


def test_json_is_in_bytes_and_agrees_with_the_table(capsys: pytest.CaptureFixture):
    code, output = run([*LARGE, "--gpus", "8", "--fsdp", "--memory", "40", "--json"], capsys)
    plan = json.loads(output)
    assert code == 1
    assert not plan["fits"]
    assert plan["usable"] == pytest.approx(0.92 * 40 * 2**30)
    assert plan["peak"] > plan["usable"]
    assert 0 < plan["largest_batch"] < 64


def test_an_unknown_size_is_an_error_that_names_those_there_are(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "--size", "vit_g14"])
    assert exit_.value.code
    assert "vit_6.5b14" in capsys.readouterr().err + str(exit_.value.code)


def test_config_fields_count(capsys: pytest.CaptureFixture):
    base = ["plan", "--size", "vit_b16", "--task", "mae", "--batch", "64", "--json"]
    plain = json.loads(run(base, capsys)[1])
    cross = json.loads(
        run([*base, "--config_overrides", "decoder_attention=cross,prediction_ratio=0.3333"], capsys)[1]
    )
    assert cross["activations"] < 0.8 * plain["activations"]
    assert cross["parameters"] != plain["parameters"]


def test_the_images_of_this_update_and_of_the_next_are_counted(capsys: pytest.CaptureFixture):
    base = ["plan", "--size", "vit_b16", "--task", "wsp", "--batch", "64", "--json"]
    once = json.loads(run(base, capsys)[1])
    eight = json.loads(run([*base, "--gradient_accumulation_steps", "8"], capsys)[1])
    batch = 64 * (3 * 224 * 224 + 16 * 8)
    assert (once["inputs"], eight["inputs"]) == (2 * batch, 16 * batch)
    assert eight["peak"] > once["peak"] + 14 * batch  # and there are gradients of the batches before


def test_config_fields_that_cannot_be_are_an_error(capsys: pytest.CaptureFixture):
    for fields, message in (
        ("prediction_ratio=half", "prediction_ratio"),
        ("decoder_attention=x", "self .* or cross"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*LARGE, "--config_overrides", fields])
        assert re.search(message, capsys.readouterr().err + str(exit_.value.code))


def peak(capsys: pytest.CaptureFixture, *flags: str, task: str = "mae", size: str = "vit_b16") -> dict[str, float]:
    return json.loads(run(["plan", "--size", size, "--task", task, "--batch", "8", "--json", *flags], capsys)[1])


def test_each_flag_costs_or_saves_what_it_is_about(capsys: pytest.CaptureFixture):
    plain = peak(capsys)
    assert 2 * peak(capsys, "--ema")["average"] == plain["moments"] > 0
    assert peak(capsys, "--bf16")["activations"] < 0.8 * plain["activations"]
    assert peak(capsys, "--checkpointing")["activations"] < 0.5 * plain["activations"]
    assert peak(capsys, "--image_size", "448")["activations"] > 3 * plain["activations"]
    sharded = peak(capsys, "--gpus", "8", "--fsdp")
    assert sharded["weights"] == pytest.approx(plain["weights"] / 8, rel=0.05)


def test_classes_are_those_of_the_task_unless_others_are_asked_for(capsys: pytest.CaptureFixture):
    def head(task: str, *flags: str) -> int:
        return peak(capsys, *flags, task=task)["parameters"]

    each = 768 + 1  # weights and bias of a class of ViT-B
    assert head("wsp") - head("finetune") == (28_000 - 1000) * each
    for task in ("wsp", "finetune"):
        assert head(task, "--labels", "20") - head(task, "--labels", "10") == 10 * each
    assert head("finetune", "--labels", "1000") == head("finetune")


def test_the_text_tower_and_its_captions_count(capsys: pytest.CaptureFixture):
    plain = peak(capsys, task="lit")
    assert peak(capsys, "--text_size", "large", task="lit")["parameters"] > 1.5 * plain["parameters"]
    assert peak(capsys, "--text_tokens", "96", task="lit")["activations"] > 1.2 * plain["activations"]
