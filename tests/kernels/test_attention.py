import pytest
import torch
from tiny import tiny_config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maws_hf import MawsViTModel
from maws_hf.kernels import attention
from maws_hf.kernels.attention import fastest_backend, matmul_attention_forward


def heads(queries: int, keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value as a projection leaves them: heads side by side, transposed."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, tokens, 3, 8, dtype=torch.float64) for tokens in (queries, keys, keys)]
    return [tensor.to(dtype).transpose(1, 2).requires_grad_() for tensor in tensors]


def results(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    output, _ = function(torch.nn.Identity(), *inputs, None, scaling=8**-0.5)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return [output, *torch.autograd.grad(output, inputs, weights.to(output.dtype))]


def closed_form(module, query, key, value, mask, scaling):
    weights = (scaling * torch.einsum("bhqd,bhkd->bhqk", query, key)).exp()
    return torch.einsum("bhqk,bhkd->bqhd", weights / weights.sum(-1, keepdim=True), value), None


@pytest.mark.parametrize("queries", [7, 3])
@pytest.mark.parametrize("at_a_time", [1, 4, 6])  # of two images with three heads each
def test_matmul_is_attention(queries: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "CACHED_BYTES", at_a_time * 8 * queries * 7)
    inputs = heads(queries, 7, torch.float64)
    for own, exact in zip(results(matmul_attention_forward, inputs), results(closed_form, inputs), strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)


def test_matmul_is_as_exact_in_bfloat16_as_sdpa():
    exact = results(closed_form, heads(50, 50, torch.float64))
    rounded = heads(50, 50, torch.bfloat16)
    errors = {
        name: [(own - true).norm() / true.norm() for own, true in zip(found, exact, strict=True)]
        for name, found in (
            ("matmul", results(matmul_attention_forward, rounded)),
            ("sdpa", results(ALL_ATTENTION_FUNCTIONS["sdpa"], rounded)),
        )
    }
    for own, fused in zip(errors["matmul"], errors["sdpa"], strict=True):
        assert own < 1.3 * fused


@pytest.mark.parametrize(
    ("configured", "dtype", "trained", "chosen"),
    [
        ("sdpa", torch.bfloat16, True, "matmul"),
        ("sdpa", torch.bfloat16, False, "sdpa"),
        ("sdpa", torch.float32, True, "sdpa"),
        ("eager", torch.bfloat16, True, "eager"),
        ("matmul", torch.float32, False, "matmul"),
    ],
)
def test_the_choice(configured: str, dtype: torch.dtype, trained: bool, chosen: str):
    query = torch.zeros(1, 1, 2, 2, dtype=dtype, requires_grad=trained)
    assert fastest_backend(configured, query) == chosen


@pytest.mark.parametrize(("tokens", "chosen"), [(257, "matmul"), (1025, "sdpa")])
def test_long_sequences_keep_no_probabilities(tokens: int, chosen: str):
    query = torch.zeros(1, 1, tokens, 2, dtype=torch.bfloat16, requires_grad=True)
    assert fastest_backend("sdpa", query) == chosen


def test_no_images_are_no_error():
    output, *gradients = results(matmul_attention_forward, [tensor[:0] for tensor in heads(7, 7, torch.bfloat16)])
    assert output.shape == (0, 7, 3, 8)
    assert [gradient.shape for gradient in gradients] == [(0, 3, 7, 8)] * 3


def test_a_mask_or_dropout_is_not_lost():
    query, key, value = heads(4, 4, torch.float64)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., 2:] = -torch.inf
    module = torch.nn.Identity()
    module.is_causal = False
    masked, _ = matmul_attention_forward(module, query, key, value, mask, scaling=8**-0.5)
    shorter, _ = matmul_attention_forward(module, query, key[:, :, :2], value[:, :, :2], None, scaling=8**-0.5)
    torch.testing.assert_close(masked, shorter)
    dropped, _ = matmul_attention_forward(module, query, key, value, None, scaling=8**-0.5, dropout=0.9)
    assert (dropped == 0).any()


def test_training_in_bfloat16_uses_it(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping,
        attention.MATMUL,
        lambda *args, **kwargs: calls.append(1) or matmul_attention_forward(*args, **kwargs),
    )
    model = MawsViTModel(tiny_config())
    pixels = torch.zeros(1, 3, model.config.image_size, model.config.image_size)
    with torch.autocast("cpu", torch.bfloat16):
        model(pixels).pooler_output.sum().backward()
        assert len(calls) == model.config.num_hidden_layers
        with torch.no_grad():
            model(pixels)
    model(pixels)
    assert len(calls) == model.config.num_hidden_layers
    assert MawsViTModel(tiny_config(attn_implementation="matmul"))(pixels).pooler_output.requires_grad
