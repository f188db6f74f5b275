"""When an operation of our own may stand in for torch's: only on ordinary tensors that nobody else looks into."""

import platform

import torch
from torch import Tensor, nn

_ORDINARY = (Tensor, nn.Parameter)
_X86 = ("x86_64", "amd64")


def is_plain(*tensors: Tensor) -> bool:
    """False under compilers, exporters, function transforms and dispatch modes (which count or fake operations), and
    for subclasses of tensors (sharded, quantised): they know torch's operations, not ours."""
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) in _ORDINARY for tensor in tensors)
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_listened_to(module: nn.Module) -> bool:
    """Whether calling this module does more than its class says: hooks of torch's, or those that Accelerate puts in
    place of `forward` to fetch weights."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear operators are there and not switched off: on x86, where they have been measured."""
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine().lower() not in _X86:
        return False
    if not (torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()):
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_vector_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in vectors (AVX-512 BF16) and has no tiles (AMX) for it, with which torch's
    attention works otherwise: what has been measured, on a Zen 4."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
