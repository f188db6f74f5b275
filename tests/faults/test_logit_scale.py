"""The logit scale under a learning rate that would carry it away."""

import math

import pytest
import torch
from tiny_lit import tiny_lit
from torch.nn.functional import normalize

from maws_hf.losses import contrastive_loss
from maws_hf.models.configuration_maws_lit import MAX_LOGIT_SCALE


@pytest.mark.parametrize("separable", [True, False])
def test_a_thousand_updates_with_an_absurd_rate_leave_it_finite_and_bounded(separable: bool):
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(6, 8, generator=generator), dim=-1)
    texts = images if separable else -images
    model = tiny_lit().train()
    optimizer = torch.optim.AdamW([model.logit_scale], lr=50.0)
    for _ in range(1000):
        loss = contrastive_loss(images, texts, model._scale())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
        assert torch.isfinite(model.logit_scale)
        assert 0 <= model._scale().item() <= 100.001
        assert model.logit_scale.item() <= MAX_LOGIT_SCALE + 1e-6
