import copy

import pytest
import torch
from tiny import tiny_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maws_hf import MawsViTModel
from maws_hf.kernels import attention
from maws_hf.kernels.attention import fastest_backend, matmul_attention_forward
from maws_hf.models.modeling_maws_vit import eager_attention_forward


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


@pytest.fixture
def zen4(monkeypatch: pytest.MonkeyPatch):
    """A processor that has oneDNN's bfloat16 and no AMX, whatever this one is."""
    monkeypatch.setattr(attention, "has_onednn", lambda dtype: True)
    monkeypatch.setattr(attention, "has_vector_bfloat16", lambda: True)


@pytest.mark.parametrize("queries", [7, 3])
@pytest.mark.parametrize("at_a_time", [0.01, 0.3, 1, 4, 6])  # of two images with three heads each
@pytest.mark.parametrize("kept", [True, False])
def test_matmul_is_attention(queries: int, at_a_time: float, kept: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "CACHED_BYTES", int(at_a_time * 8 * queries * 7))
    monkeypatch.setattr(attention, "MOST_KEPT_QUERIES", queries if kept else queries - 1)
    inputs = heads(queries, 7, torch.float64)
    exact_results = results(closed_form, inputs)
    for own, exact in zip(results(matmul_attention_forward, inputs), exact_results, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        answer, _ = matmul_attention_forward(torch.nn.Identity(), *inputs, None, scaling=8**-0.5)
    torch.testing.assert_close(answer, exact_results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("count", "held", "lengths"), [(6, 6, [6]), (7, 4, [4, 3]), (1025, 511, [342, 342, 341]), (3, 0.5, [1, 1, 1])]
)
def test_parts_are_of_one_length_and_no_larger_than_the_caches(
    count: int, held: float, lengths: list[int], threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "CACHED_BYTES", int(2 * held) // threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert [len(range(count)[part]) for part in attention._parts(count, 2)] == lengths


class Sizes(TorchDispatchMode):
    """The most elements that a result has of what is computed inside."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(("cached", "at_a_time"), [(7, 7), (35, 25), (70, 50)])  # queries' scores, of 50 a head
def test_without_gradients_no_more_scores_are_there_than_the_caches_hold(
    cached: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "CACHED_BYTES", cached * 200 * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    query, key, value = (tensor[..., :1] for tensor in heads(50, 200, torch.float64))
    with torch.no_grad(), Sizes() as sizes:
        matmul_attention_forward(nn.Identity(), query, key, value, None, scaling=1.0)
    assert sizes.largest == at_a_time * 200 > key.numel()


@pytest.mark.parametrize("queries", [5, 6])
def test_of_many_queries_no_probabilities_are_kept(queries: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "MOST_KEPT_QUERIES", 5)
    inputs = heads(queries, 6, torch.float64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        matmul_attention_forward(nn.Identity(), *inputs, None, scaling=1.0)
    assert sum(tensor.numel() for tensor in kept) == sum(map(torch.numel, inputs)) + (queries == 5) * 6 * 5 * 6


@pytest.mark.parametrize("cached", [1, 2, 3])  # heads of six
def test_the_backward_pass_makes_no_more_scores_than_the_caches_hold(cached: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "MOST_KEPT_QUERIES", 0)
    monkeypatch.setattr(attention, "CACHED_BYTES", cached * 50 * 200 * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    query, key, value = (tensor[..., :1].detach().requires_grad_() for tensor in heads(50, 200, torch.float64))
    output, _ = matmul_attention_forward(nn.Identity(), query, key, value, None, scaling=1.0)
    with Sizes() as sizes:
        output.sum().backward()
    assert sizes.largest == cached * 50 * 200 > key.numel()


@pytest.mark.parametrize("trained", ["query", "key", "value"])
def test_one_that_is_trained_is_enough(trained: str, zen4: None):
    inputs = dict(zip(("query", "key", "value"), heads(5, 6, torch.float64), strict=True))
    exact = dict(zip(inputs, results(closed_form, list(inputs.values()))[1:], strict=True))[trained]
    alone = {name: tensor.detach().requires_grad_(name == trained) for name, tensor in inputs.items()}
    output, _ = matmul_attention_forward(nn.Identity(), *alone.values(), None, scaling=8**-0.5)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    (gradient,) = torch.autograd.grad(output, alone[trained], weights)
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)
    narrow = torch.zeros(3, 1, 1, 321, 32, dtype=torch.bfloat16)
    tensors = [tensor.clone().requires_grad_(name == trained) for name, tensor in zip(inputs, narrow, strict=True)]
    assert fastest_backend("sdpa", *tensors) == "sdpa"  # without a backward pass it would be "matmul"


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("kept", [True, False])
def test_matmul_is_as_exact_in_bfloat16_as_eager_attention(size: float, kept: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "MOST_KEPT_QUERIES", 197 if kept else 0)
    query, *others = heads(197, 197, torch.float64)
    query = (query.detach() * size).requires_grad_()
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in (query, *others)]
    exact = results(closed_form, [tensor.detach().double().requires_grad_() for tensor in rounded])

    def errors(function) -> list[float]:
        found = results(function, rounded)
        return [((own - true).norm() / true.norm()).item() for own, true in zip(found, exact, strict=True)]

    def plain_eager(module, *inputs, scaling):
        attended, _ = eager_attention_forward(module, *inputs, scaling)
        return attended, None

    for own, eager in zip(errors(matmul_attention_forward), errors(plain_eager), strict=True):
        assert own < 1.1 * eager < 0.1


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
        ("torch_sdpa", torch.bfloat16, True, "torch_sdpa"),
        ("torch_sdpa", torch.bfloat16, False, "torch_sdpa"),
    ],
)
def test_the_choice(configured: str, dtype: torch.dtype, trained: bool, chosen: str, zen4: None):
    query, key, value = torch.zeros(3, 1, 1, 64, 2, dtype=dtype)
    assert fastest_backend(configured, query, key, value.requires_grad_(trained)) == chosen


@pytest.mark.parametrize(
    ("queries", "keys", "width", "trained", "chosen"),
    [
        (17, 17, 32, True, "matmul"),
        (320, 320, 32, True, "matmul"),
        (1, 5000, 32, True, "matmul"),
        (321, 321, 63, True, "sdpa"),
        (321, 321, 64, True, "matmul"),
        (1370, 1370, 80, True, "matmul"),
        (4096, 4096, 64, True, "matmul"),
        (321, 4097, 64, True, "sdpa"),
        (1, 63, 64, False, "sdpa"),
        (1, 64, 32, False, "matmul"),
        (4097, 4097, 32, False, "matmul"),
    ],
)
def test_the_shape_decides(queries: int, keys: int, width: int, trained: bool, chosen: str, zen4: None):
    query = torch.zeros(1, 1, queries, width, dtype=torch.bfloat16, requires_grad=trained)
    key = torch.zeros(1, 1, keys, width, dtype=torch.bfloat16)
    assert fastest_backend("sdpa", query, key, key) == chosen


@pytest.mark.parametrize("lacking", ["has_onednn", "has_vector_bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "trained", "chosen"), [(64, False, "sdpa"), (320, True, "matmul"), (321, True, "sdpa")]
)
def test_where_nothing_was_measured_torchs_own_answers(
    tokens: int, trained: bool, chosen: str, lacking: str, zen4: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, lacking, lambda *dtype: False)
    query = torch.zeros(1, 1, tokens, 64, dtype=torch.bfloat16, requires_grad=trained)
    assert fastest_backend("sdpa", query, query, query) == chosen


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_subclass_of_tensors_gets_torchs_operations(place: int, zen4: None):
    projected = [torch.zeros(1, 1, 64, 2, dtype=torch.bfloat16) for _ in range(3)]
    assert fastest_backend("sdpa", *projected) == "matmul"
    projected[place] = projected[place].as_subclass(type("Sharded", (torch.Tensor,), {}))
    assert fastest_backend("sdpa", *projected) == "sdpa"


@pytest.mark.parametrize("module", ["compiling", "functional"])
def test_what_knows_only_torchs_operations_gets_them(module: str, zen4: None):
    query = torch.zeros(1, 1, 64, 2, dtype=torch.bfloat16)
    seen = []
    if module == "compiling":
        choose = torch.compile(
            lambda query: query + len(fastest_backend("sdpa", query, query, query)), backend="eager"
        )
        assert (choose(query) == len("sdpa")).all()
        return
    torch.func.vmap(lambda query: seen.append(fastest_backend("sdpa", query, query, query)) or query)(query)
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
def test_answers_in_bfloat16_are_nearly_as_exact_as_with_sdpa(size: float, zen4: None):
    torch.manual_seed(0)
    model = MawsViTModel(tiny_config(image_size=64)).eval()
    for name, weight in model.named_parameters():
        if "proj.weight" in name:
            nn.init.normal_(weight, std=size * weight.shape[1] ** -0.5)  # scores that tell tokens apart
    pixels = torch.randn(64, 3, model.config.image_size, model.config.image_size)
    errors = []
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(pixels.double()).last_hidden_state
        model.to(torch.bfloat16)
        for implementation in ("sdpa", "torch_sdpa"):
            model.set_attn_implementation(implementation)
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
    model = MawsViTModel(tiny_config(image_size=64))
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
