import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from maws_hf.kernels import linear
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


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["rows", "batches", "class tokens", "transposed"])
def test_equals_the_closed_form(layout: str, bias: bool, products: list[torch.Size]):
    torch.manual_seed(0)
    layer = Linear(24, 40, bias=bias)
    inputs = {
        "rows": torch.randn(5, 24),
        "batches": torch.randn(2, 5, 24),
        "class tokens": torch.randn(3, 5, 24)[:, :1],
        "transposed": torch.randn(2, 24, 5).transpose(1, 2),
    }[layout].requires_grad_()
    output = layer(inputs)
    gradient = torch.randn(output.shape)
    own = torch.autograd.grad(output, (inputs, *layer.parameters()), gradient)
    assert len(products) == 2  # forward and the input's gradient

    exact = [tensor.detach().double() for tensor in (inputs, gradient, layer.weight)]
    rows, gradients = exact[0].flatten(0, -2), exact[1].flatten(0, -2)
    expected = [(gradients @ exact[2]).view(inputs.shape), gradients.T @ rows, gradients.sum(0)]
    out = rows @ exact[2].T + (layer.bias.detach().double() if bias else 0)
    torch.testing.assert_close(output.double(), out.view(output.shape), rtol=1e-5, atol=1e-5)
    for found, true in zip(own, expected, strict=False):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_only_wanted_gradients_are_computed(products: list[torch.Size]):
    layer = Linear(8, 8)
    layer.weight.requires_grad_(False)
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [2.0] * 8
    assert len(products) == 1


@pytest.mark.parametrize("case", ["float64", "bfloat16", "autocast", "vmap", "counted", "switched off", "empty"])
def test_torch_does_the_rest(case: str, products: list[torch.Size]):
    layer, inputs = Linear(8, 8), torch.randn(3, 8)
    if case in ("float64", "bfloat16"):
        layer, inputs = layer.to(getattr(torch, case)), inputs.to(getattr(torch, case))
    expected = F.linear(inputs, layer.weight, layer.bias)
    if case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
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
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast_for_autocast(inputs), inputs.bfloat16())
        assert cast_for_autocast(inputs.double()).dtype == torch.float64
