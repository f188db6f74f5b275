import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maws_hf.kernels.packed import PackedLinear, PackedModelError, can_pack

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}

pytestmark = pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="no oneDNN, or no x86 processor")


def linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(40, 24, bias=bias).to(dtype).requires_grad_(False)
    if not can_pack(made):
        pytest.skip(f"oneDNN does not take {dtype} on this processor")
    return made


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[found.dtype], atol=TOLERANCE[found.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 5, 40), (2, 197, 40), (0, 40), (2, 3, 4, 40)])
def test_results_are_those_of_linear_for_any_number_of_rows(dtype, bias, shape):
    plain = linear(dtype, bias)
    inputs = torch.randn(shape).to(dtype)
    residual = torch.randn(*shape[:-1], 24).to(dtype)
    residual_before = residual.clone()
    expected = plain(inputs)
    packed = PackedLinear(plain)
    assert_close(packed(inputs), expected)
    assert_close(packed(inputs, residual), expected + residual)
    assert torch.equal(residual, residual_before)
    for gelu in ("none", "tanh"):
        assert_close(packed(inputs, gelu=gelu), F.gelu(expected, approximate=gelu))


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_are_taken_as_they_lie_in_memory(dtype):
    plain = linear(dtype)
    inputs, residual = torch.randn(4, 6, 40).to(dtype), torch.randn(4, 6, 24).to(dtype)
    first, transposed = inputs[:, :1], inputs.transpose(0, 1)
    expected, expected_transposed = plain(first) + residual[:, :1], plain(transposed) + residual.transpose(0, 1)
    packed = PackedLinear(plain)
    assert_close(packed(first, residual[:, :1]), expected)
    assert_close(packed(transposed, residual.transpose(0, 1)), expected_transposed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_held_once_and_come_back_bit_for_bit(dtype):
    plain = linear(dtype)
    weight, values = plain.weight, plain.weight.detach().clone()
    packed = PackedLinear(plain)
    assert plain.weight.untyped_storage().nbytes() == 0
    assert not list(packed.parameters())
    with torch.inference_mode():
        unpacked = packed.unpack()
    assert unpacked is plain
    assert plain.weight is weight
    assert torch.equal(weight, values)
    assert not weight.is_inference()
    weight.requires_grad_()
    plain(torch.randn(3, 40).to(dtype)).sum().backward()
    assert weight.grad.shape == weight.shape


@pytest.mark.parametrize("bias", [True, False])
def test_a_rounded_copy_computes_what_autocast_does_beside_the_weights(bias):
    linear(torch.bfloat16)  # or skips
    plain = linear(bias=bias)
    values = plain.weight.detach().clone()
    inputs, residual = torch.randn(3, 5, 40), torch.randn(3, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(inputs)
    packed = PackedLinear(plain, torch.bfloat16)
    assert torch.equal(plain.weight, values)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(packed(inputs), expected)
        assert_close(packed(inputs.bfloat16()), expected)
        assert_close(packed(inputs, gelu="none"), F.gelu(expected))
        assert_close(packed(inputs, residual.bfloat16()), expected + residual.bfloat16())
        added = packed(inputs, residual)
    assert added.dtype == torch.float32  # the sum is not rounded
    torch.testing.assert_close(added - residual, expected.float(), rtol=8e-3, atol=8e-3)
    with pytest.raises(PackedModelError, match=r"packed for autocast in torch\.bfloat16, which is not on"):
        packed(inputs)
    assert packed.unpack() is plain
    assert torch.equal(plain.weight, values)


def test_what_packed_weights_cannot_do_is_one_error_that_says_what_to_do():
    packed = PackedLinear(linear())
    inputs = torch.randn(2, 40)
    for attempt in (
        packed.train,
        packed.state_dict,
        packed.half,
        lambda: packed.load_state_dict({}),
        lambda: packed.to(torch.bfloat16),
        lambda: copy.deepcopy(packed),
        lambda: torch.save(packed, io.BytesIO()),
        lambda: packed(inputs.clone().requires_grad_()),
        lambda: packed(inputs.double()),
    ):
        with pytest.raises(
            PackedModelError, match=r"prepare_for_inference.*do it before, or with the model loaded anew"
        ):
            attempt()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(PackedModelError, match=r"bfloat16.*float32.*model\.to"):
        packed(inputs)
    assert not packed.eval().training
    assert packed(inputs).shape == (2, 24)


def test_only_plain_linear_layers_on_this_processor_are_packed(monkeypatch):
    class Wrapped(nn.Linear):
        pass

    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, inputs, output: output)
    assert not can_pack(nn.Linear(4, 4).double(), torch.bfloat16)
    for other in (Wrapped(4, 4), hooked, nn.Linear(4, 4).double(), nn.Linear(4, 4).half(), nn.LayerNorm(4)):
        assert not can_pack(other)
    assert not can_pack(nn.Linear(4, 4, device="meta"))
    assert can_pack(nn.Linear(4, 4))
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert not can_pack(nn.Linear(4, 4))
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(nn.Linear(4, 4))


def test_compiled_code_calls_the_packed_layer():
    plain = linear()
    inputs = torch.randn(5, 40)
    expected = F.gelu(plain(inputs)) * 2
    packed = PackedLinear(plain)
    compiled = torch.compile(lambda x: packed(x, gelu="none") * 2, backend="eager")
    assert_close(compiled(inputs), expected)
