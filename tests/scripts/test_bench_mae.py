"""The benchmark of masked pre-training, in small: it compares models that compute the same loss."""

import re
import weakref
from argparse import Namespace
from functools import partial

import bench_mae
import pytest
import torch
from tiny import tiny_config
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from maws_hf import MawsMAEForPreTraining, MawsViTConfig
from maws_hf.evaluation.flops import mae_training_flops
from maws_hf.hub.original_names import pieces_of


@pytest.mark.slow
def test_losses_agree_and_a_row_says_how_much_faster(monkeypatch: pytest.MonkeyPatch, capsys):
    options = ["--peers", "transformers", "--batch", "1", "--image_size", "64", "--rounds", "1", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options])
    monkeypatch.setattr(bench_mae, "peak_gib", lambda *arguments: 1.25)
    monkeypatch.setattr(bench_mae, "measure_matmul_peak", lambda *arguments, **options: 1e11)
    bench_mae.main()
    printed = capsys.readouterr().out
    names = ["transformers, fused AdamW", "transformers, eager attention, fused AdamW", "maws_hf"]
    rows = re.findall(rf"^\| ({'|'.join(names)}) +\|(.*)\|$", printed, re.MULTILINE)
    assert [name for name, _ in rows] == names
    theirs, eager, ours = ([cell.strip() for cell in cells.split("|")] for _, cells in rows)
    assert float(theirs[3]) > 0
    operations = mae_training_flops(MawsViTConfig(image_size=64))
    for row in (theirs, eager, ours):
        assert float(row[2].rstrip("%")) == pytest.approx(100 * operations * float(row[1]) / 1e11, abs=0.1, rel=0.01)
    assert ours[3] == ""
    assert max(abs(float(theirs[5])), abs(float(eager[5]))) < 1e-5
    assert ours[6] == theirs[6] == eager[6] == "1.25"


def test_original_names_hold_all_of_our_weights():
    ours = MawsMAEForPreTraining(tiny_config())
    theirs = bench_mae.peers_mae.original_weights(ours)
    assert sum(map(torch.numel, theirs.values())) == sum(map(torch.numel, ours.state_dict().values()))
    for piece in pieces_of("mae", ours.config):
        part, parts = piece.part
        assert torch.equal(theirs[piece.source].chunk(parts)[part], ours.state_dict()[piece.target])


@pytest.mark.parametrize(
    ("options", "peers"), [("", ["transformers", "lightly"]), ("--original mae", [*bench_mae.PEERS])]
)
def test_the_original_is_compared_where_there_is_a_clone(options, peers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options.split()])
    assert sorted(bench_mae.parse_arguments().peers) == sorted(peers)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--peers original", "--original DIR"),
        ("--image_size 100", "no multiple of the patch of 16"),
        ("--batch 0", "--batch: 0 is less than 1"),
    ],
)
def test_what_cannot_be_compared_is_an_error(options: str, error: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options.split()])
    with pytest.raises(SystemExit):
        bench_mae.parse_arguments()
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(("options", "batch"), [("", 8), ("--device cuda:1", 128), ("--device cuda --batch 4", 4)])
def test_a_gpu_gets_more_images(options: str, batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options.split()])
    assert bench_mae.parse_arguments().batch == batch


@pytest.mark.parametrize("implementation", ["maws_hf", "transformers", "transformers eager"])
def test_a_step_is_on_its_device(implementation: str, on_meta: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_mae, "build", partial(bench_mae.build, **bench_mae.TINY))
    arguments = Namespace(size="vit_b16", image_size=64, batch=2, device=on_meta, compile=False)
    assert bench_mae.step_of(implementation, True, "bfloat16", arguments)().device.type == on_meta


def test_no_more_than_two_models_are_on_a_gpu(gpu, monkeypatch: pytest.MonkeyPatch, capsys):
    gpu.takes_the_cpu(bench_mae)
    alive: weakref.WeakSet = weakref.WeakSet()
    most = []

    class Step:
        def __init__(self, implementation: str, *_):
            alive.add(self)
            most.append(len(alive))
            self.loss = torch.tensor(1.5 if implementation == "maws_hf" else 2.0)

        def __call__(self) -> torch.Tensor:
            return self.loss

    monkeypatch.setattr(bench_mae, "step_of", Step)
    options = ["--peers", "transformers", "original", "--original", "mae", "--rounds", "2", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["bench_mae.py", *options])
    bench_mae.main()
    printed = capsys.readouterr().out
    # Four peers, each beside ours; then each form alone.
    assert most == [1, 2] * 4 + [1] * 5
    assert gpu.calls.count("empty_cache") == 4 + 5
    assert "a pretended GPU" in printed
    assert "ms/step" in printed
    assert printed.count("+5.0e-01") == 4


def test_the_peak_on_a_gpu_is_that_of_a_step_beside_what_was_there(gpu, monkeypatch: pytest.MonkeyPatch):
    gib = 2**30
    gpu.takes_the_cpu(bench_mae)
    gpu.allocate(3 * gib)

    def step_of(*_):
        gpu.allocate(90 * gib)  # weights of two models
        gpu.allocate(-88 * gib)
        transient = iter([40, 4, 4])  # the first call tries kernels
        return lambda: [gpu.allocate(sign * size * gib) for size in [next(transient)] for sign in (1, -1)]

    monkeypatch.setattr(bench_mae, "step_of", step_of)
    assert bench_mae.peak_gib("maws_hf", True, "float32", Namespace(device="cpu")) == 2 + 4


def event(name: str, start: int, end: int, device: DeviceType, **fields: bool) -> FunctionEvent:
    return FunctionEvent(0, name, 0, start, end, stack=[], use_device="cuda", device_type=device, **fields)


def test_a_profile_counts_each_kernel_of_a_gpu_once():
    product, update = event("aten::mm", 0, 70, DeviceType.CPU), event("aten::_fused_adamw_", 80, 90, DeviceType.CPU)
    product.append_kernel("nvjet_tst", 0, 300)
    update.append_kernel("multi_tensor_apply_kernel", 0, 100)
    kernels = [event("nvjet_tst", 9, 309, DeviceType.CUDA), event("multi_tensor_apply", 310, 410, DeviceType.CUDA)]
    named = [event("Optimizer.step", 310, 410, device, is_user_annotation=True) for device in DEVICES]
    events = EventList([product, update, *kernels, *named], use_device="cuda")
    events._build_tree()
    averages = events.key_averages()
    assert sum(average.self_device_time_total for average in averages) > 400, "what has kernels has their time"
    shares = bench_mae.shares_of(averages, gpu=True)
    assert {kind: seconds for kind, seconds in shares.items() if seconds} == {
        "matrix products": pytest.approx(300e-6),
        "optimizer": pytest.approx(100e-6),
    }


DEVICES = (DeviceType.CPU, DeviceType.CUDA)


def test_a_profile_of_a_cpu_has_its_operations():
    events = EventList([event("aten::mm", 0, 70, DeviceType.CPU), event("aten::gelu", 80, 110, DeviceType.CPU)])
    events._build_tree()
    shares = bench_mae.shares_of(events.key_averages(), gpu=False)
    assert (shares["matrix products"], shares["GELU"]) == (pytest.approx(70e-6), pytest.approx(30e-6))
    assert list(shares) == [*bench_mae.KINDS, "other"]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::baddbmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::native_layer_norm_backward", "LayerNorm"),
        ("aten::add_", "other"),
    ],
)
def test_a_profile_knows_what_an_operation_is_for(operation: str, kind: str):
    assert bench_mae.kind_of(operation, bench_mae.KINDS) == kind


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x128x8", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_256x128_8x4_tn_align1>", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "matrix products"),
        ("triton_tem_fused_addmm_3", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("fmha_cutlassB_f32_aligned_64x64_k64_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64", "attention"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 8, false, false>", "attention"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("triton_per_fused__to_copy_addmm_native_layer_norm_1", "compiled"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda(at::TensorIteratorBase&)>", "copies"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<4u>, 2, 64, 64>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl(at::TensorIteratorBase&)>", "GELU"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "LayerNorm"),
        ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float>", "LayerNorm"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", "other"),
    ],
)
def test_a_profile_knows_what_a_kernel_is_for(kernel: str, kind: str):
    assert bench_mae.kind_of(kernel, bench_mae.KERNELS).split()[0] == kind.split()[0]
