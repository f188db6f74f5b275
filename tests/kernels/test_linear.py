import platform

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from maws_hf.kernels import linear
from maws_hf.kernels.eligibility import has_onednn
from maws_hf.kernels.linear import Linear, cast_for_autocast


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the inputs that have gone through oneDNN."""
    shapes: list[torch.Size] = []
    usual = linear.product

    def counted(input: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        shapes.append(input.shape)
        return usual(input, *others)

    monkeypatch.setattr(linear, "product", counted)
    return shapes


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine().lower() not in ("x86_64", "amd64"),
    reason="oneDNN multiplies on x86 alone, where torch was built with it",
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["one", "rows", "many rows", "batches", "class tokens", "transposed"])
def test_equals_the_closed_form(layout: str, bias: bool, products: list[torch.Size]):
    torch.manual_seed(0)
    layer = Linear(24, 40, bias=bias)
    inputs = {
        "one": torch.randn(24),
        "rows": torch.randn(5, 24),
        "many rows": torch.randn(24, 24),
        "batches": torch.randn(2, 5, 24),
        "class tokens": torch.randn(3, 5, 24)[:, :1],
        "transposed": torch.randn(2, 24, 5).transpose(1, 2),
    }[layout].requires_grad_()
    output = layer(inputs)
    gradient = torch.randn(output.shape)
    own = torch.autograd.grad(output, (inputs, *layer.parameters()), gradient)
    # Forward, the input's gradient and, where few rows make a large matrix, that of the weights.
    assert len(products) == (2 if layout == "many rows" else 3)

    exact = [tensor.detach().double() for tensor in (inputs, gradient, layer.weight)]
    rows, gradients = (tensor.reshape(-1, tensor.shape[-1]) for tensor in exact[:2])
    expected = [(gradients @ exact[2]).view(inputs.shape), gradients.T @ rows, gradients.sum(0)]
    out = rows @ exact[2].T + (layer.bias.detach().double() if bias else 0)
    torch.testing.assert_close(output.double(), out.view(output.shape), rtol=1e-5, atol=1e-5)
    for found, true in zip(own, expected, strict=False):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="this processor multiplies no bfloat16")
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_rounded_once(autocast: bool, products: list[torch.Size]):
    torch.manual_seed(0)
    layer, inputs = Linear(24, 40), torch.randn(2, 5, 24)
    if not autocast:
        layer, inputs = layer.bfloat16(), inputs.bfloat16()
    inputs.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(inputs)
    gradient = torch.randn(output.shape).bfloat16()
    own = torch.autograd.grad(output, (inputs, *layer.parameters()), gradient)
    assert len(products) == 1  # forward; torch calls oneDNN itself for the gradients
    assert [tensor.dtype for tensor in own] == [torch.float32 if autocast else torch.bfloat16] * 3

    weight, bias, rows = (tensor.detach().bfloat16().double() for tensor in (layer.weight, layer.bias, inputs))
    gradients = gradient.double()
    exact = [
        rows @ weight.T + bias,
        gradients @ weight,
        gradients.flatten(0, 1).T @ rows.flatten(0, 1),
        gradients.flatten(0, 1).sum(0),
    ]
    for found, true in zip((output, *own), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=2**-8, atol=2**-8)


@needs_onednn
def test_only_wanted_gradients_are_computed(products: list[torch.Size]):
    layer = Linear(8, 8)
    layer.weight.requires_grad_(False)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        output = layer(torch.randn(2, 8))
    assert kept == []
    output.sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [2.0] * 8
    assert len(products) == 1


@needs_onednn
@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="this processor multiplies no bfloat16")
def test_autocasts_copies_of_weights_are_not_kept():
    layer, kept = Linear(8, 8), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
    ):
        layer(torch.randn(2, 8, requires_grad=True))
    assert [tensor.dtype for tensor in kept] == [torch.bfloat16, torch.float32]
    assert kept[1].data_ptr() == layer.weight.data_ptr()


@pytest.mark.parametrize(
    "case", ["float64", "mixed", "frozen", "inference", "float16", "vmap", "counted", "switched off", "empty"]
)
def test_torch_does_the_rest(case: str, products: list[torch.Size]):
    layer, inputs = Linear(8, 8), torch.randn(3, 8)
    if case == "float64":
        layer, inputs = layer.double(), inputs.double()
    if case == "frozen":
        layer.requires_grad_(False)
    expected = F.linear(inputs, layer.weight, layer.bias)
    if case == "mixed":
        with pytest.raises(RuntimeError, match="dtype"):
            layer(inputs.bfloat16())
    elif case in ("frozen", "float16"):
        with torch.autocast("cpu", torch.float16 if case == "float16" else torch.bfloat16):
            assert layer(inputs).dtype in (torch.float16, torch.bfloat16)
    elif case == "inference":
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert layer(inputs).dtype == torch.bfloat16
    elif case == "vmap":
        torch.testing.assert_close(torch.vmap(layer)(inputs), expected)
    elif case == "counted":
        with FlopCounterMode(display=False) as counter:
            layer(inputs)
        assert counter.get_total_flops() == 2 * 3 * 8 * 8
    elif case == "switched off":
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(layer(inputs), expected)
    elif case == "empty":
        assert layer(inputs[:0]).shape == (0, 8)
    else:
        assert torch.equal(layer(inputs), expected)
    assert not products


def test_compiles_as_any_linear_layer(products: list[torch.Size]):
    layer = Linear(8, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(2, 8)), layer(torch.ones(2, 8)))
    assert len(products) <= 1  # of the call that was not compiled


def test_inputs_are_cast_once_as_autocast_would():
    inputs = torch.randn(3, 4)
    assert cast_for_autocast(inputs) is inputs
    on_meta = inputs.to("meta")
    assert cast_for_autocast(on_meta) is on_meta  # a device that knows no autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast_for_autocast(inputs), inputs.bfloat16())
        assert cast_for_autocast(inputs.double()).dtype == torch.float64


def test_float16_under_autocast_to_bfloat16_is_left_to_torch(products: list[torch.Size]):
    layer, rows = Linear(8, 6), torch.randn(5, 8, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(rows), F.linear(rows, layer.weight, layer.bias)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not products


def test_an_input_of_another_width_is_refused_in_torchs_words():
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(4x6 and 3x5\)"):
        Linear(3, 5)(torch.randn(4, 6))
