import copy

import pytest
import torch
from tiny import tiny_config
from torch import nn
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
@pytest.mark.parametrize("at_a_time", [0.01, 0.3, 1, 4, 6])  # of two images with three heads each
def test_matmul_is_attention(queries: int, at_a_time: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "CACHED_BYTES", int(at_a_time * 8 * queries * 7))
    inputs = heads(queries, 7, torch.float64)
    exact_results = results(closed_form, inputs)
    for own, exact in zip(results(matmul_attention_forward, inputs), exact_results, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        answer, _ = matmul_attention_forward(torch.nn.Identity(), *inputs, None, scaling=8**-0.5)
    torch.testing.assert_close(answer, exact_results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("count", "held", "lengths"), [(6, 6, [6]), (7, 4, [4, 3]), (1025, 511, [342, 342, 341])])
def test_parts_are_of_equal_length(count: int, held: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "CACHED_BYTES", held)
    assert [len(range(count)[part]) for part in attention._parts(count, 1)] == lengths


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


@pytest.fixture
def zen4(monkeypatch: pytest.MonkeyPatch):
    """A processor that has oneDNN's bfloat16 and no AMX, whatever this one is."""
    monkeypatch.setattr(attention, "has_onednn", lambda dtype: True)
    monkeypatch.setattr(attention, "has_amx", lambda: False)


@pytest.mark.parametrize(
    ("configured", "dtype", "trained", "chosen"),
    [
        ("sdpa", torch.bfloat16, True, "matmul"),
        ("sdpa", torch.bfloat16, False, "matmul"),
        ("sdpa", torch.float32, True, "sdpa"),
        ("sdpa", torch.float32, False, "sdpa"),
        ("eager", torch.bfloat16, True, "eager"),
        ("eager", torch.bfloat16, False, "eager"),
        ("matmul", torch.float32, False, "matmul"),
    ],
)
def test_the_choice(configured: str, dtype: torch.dtype, trained: bool, chosen: str, zen4: None):
    query, key, value = torch.zeros(3, 1, 1, 2, 2, dtype=dtype)
    assert fastest_backend(configured, query, key, value.requires_grad_(trained)) == chosen


@pytest.mark.parametrize(
    ("tokens", "trained", "chosen"), [(257, True, "matmul"), (1025, True, "sdpa"), (1025, False, "matmul")]
)
def test_long_sequences_keep_no_probabilities(tokens: int, trained: bool, chosen: str, zen4: None):
    query = torch.zeros(1, 1, tokens, 2, dtype=torch.bfloat16, requires_grad=trained)
    assert fastest_backend("sdpa", query, query, query) == chosen


@pytest.mark.parametrize("lacking", ["has_onednn", "has_amx"])
def test_torchs_own_answers_where_nothing_was_measured(lacking: str, zen4: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, lacking, lambda *dtype: lacking == "has_amx")
    query = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    assert fastest_backend("sdpa", query, query, query) == "sdpa"
    trained = query.clone().requires_grad_()
    assert fastest_backend("sdpa", trained, query, query) == "matmul"


@pytest.mark.parametrize("module", ["compiling", "functional", "subclass"])
def test_what_knows_only_torchs_operations_gets_them(module: str, zen4: None):
    query = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    seen = []
    if module == "compiling":
        choose = torch.compile(
            lambda query: query + len(fastest_backend("sdpa", query, query, query)), backend="eager"
        )
        assert (choose(query) == len("sdpa")).all()
        return
    if module == "functional":
        torch.func.vmap(lambda query: seen.append(fastest_backend("sdpa", query, query, query)) or query)(query)
    else:
        subclass = query.as_subclass(type("Sharded", (torch.Tensor,), {}))
        seen.append(fastest_backend("sdpa", query, subclass, query))
    assert seen == ["sdpa"]


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


@pytest.mark.parametrize("size", [1, 4])
def test_answers_in_bfloat16_are_as_exact_as_with_sdpa(size: float, zen4: None, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = MawsViTModel(tiny_config()).eval()
    for name, weight in model.named_parameters():
        if "proj.weight" in name:
            nn.init.normal_(weight, std=size * weight.shape[1] ** -0.5)  # scores that tell tokens apart
    pixels = torch.randn(64, 3, model.config.image_size, model.config.image_size)
    errors = []
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(pixels.double()).last_hidden_state
        model.to(torch.bfloat16)
        for has_amx in (False, True):
            monkeypatch.setattr(attention, "has_amx", lambda has_amx=has_amx: has_amx)
            errors.append((model(pixels.bfloat16()).last_hidden_state - exact).norm())
    assert errors[0] != errors[1]
    assert errors[0] < 1.3 * errors[1]


def test_bfloat16_uses_it_with_gradients_and_without(zen4: None, monkeypatch: pytest.MonkeyPatch):
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
        assert len(calls) == 2 * model.config.num_hidden_layers
    model(pixels)
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert MawsViTModel(tiny_config(attn_implementation="matmul"))(pixels).pooler_output.requires_grad
