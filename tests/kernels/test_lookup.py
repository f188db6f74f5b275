import pytest
import torch

from maws_hf.kernels.lookup import look_up

ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_gradients_of_many_askers_are_rounded_once(device: str):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 16, generator=generator).to(device, torch.bfloat16).requires_grad_()
    ids = torch.randint(0, 6, (300, 4), generator=generator).to(device)
    gradient = torch.rand(300, 4, 16, generator=generator).to(device, torch.bfloat16)
    rows = look_up(table, ids)
    assert torch.equal(rows, table[ids])
    (found,) = torch.autograd.grad(rows, table, gradient)
    exact = torch.zeros(6, 16, dtype=torch.float64, device=device)
    exact.index_add_(0, ids.flatten(), gradient.double().flatten(0, 1))
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)
