import math

import pytest

from maws_hf.optim.schedules import scaled_learning_rate, warmup_cosine


def test_paper_learning_rate():
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_schedule_has_the_parents_values():
    rate = [warmup_cosine(step, peak=2.0, warmup_steps=4, max_steps=12) for step in range(13)]
    assert rate[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert rate[8] == pytest.approx(1.0)
    assert rate[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate[12] == 0.0


def test_schedule_ends_at_its_final_value_and_stays():
    assert warmup_cosine(99, peak=2.0, warmup_steps=0, max_steps=12, final=0.1) == pytest.approx(0.1)
    assert warmup_cosine(0, peak=2.0, warmup_steps=0, max_steps=12) == 2.0


def test_the_cosine_falls_from_the_peak_to_the_final_value():
    rate = [warmup_cosine(step, peak=2.0, warmup_steps=4, max_steps=12, final=0.5) for step in (4, 8, 12)]
    assert rate == pytest.approx([2.0, 1.25, 0.5])


def test_a_run_that_only_warms_up_reaches_its_peak():
    rate = [warmup_cosine(step, peak=2.0, warmup_steps=4, max_steps=4) for step in range(5)]
    assert rate == [0.0, 0.5, 1.0, 1.5, 2.0]
