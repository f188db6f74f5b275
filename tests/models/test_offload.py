"""Models that one device cannot hold: modules stay on disk until they are needed, or lie on several devices.

What is not split for that is also what Accelerate shards by, where a training loop other than ours has it do so.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy, fsdp2_prepare_model
from tiny import tiny_config
from tiny_lit import tiny_lit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from maws_hf import MawsMAEForPreTraining, MawsViTBackbone, MawsViTForImageClassification, MawsViTModel

META = torch.device("meta")
IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
MODELS = {
    "encoder": lambda: MawsViTModel(tiny_config()),
    "classifier": lambda: MawsViTForImageClassification(tiny_config(num_labels=5)),
    "backbone": lambda: MawsViTBackbone(tiny_config()),
    "MAE": lambda: MawsMAEForPreTraining(tiny_config(decoder_num_hidden_layers=3)),
    "MAE, cross-attention": lambda: MawsMAEForPreTraining(
        tiny_config(decoder_num_hidden_layers=3, decoder_attention="cross", prediction_ratio=0.5)
    ),
    "LiT": tiny_lit,
}


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    side = getattr(model.config, "vision_config", model.config).image_size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = {"pixel_values": pixels}
    if isinstance(model, MawsMAEForPreTraining):
        inputs["noise"] = torch.rand(2, math.prod(model.config.grid_size), generator=torch.Generator().manual_seed(2))
    if hasattr(model, "text_model"):
        inputs["input_ids"] = torch.tensor([[0, 5, 6, 2], [0, 7, 8, 2]])
        inputs["attention_mask"] = torch.ones(2, 4, dtype=torch.long)
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    if "feature_maps" in outputs:
        return {f"feature map {number}": value for number, value in enumerate(outputs.feature_maps)}
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.85])
@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_fit_is_kept_on_disk(name: str, share: float, tmp_path: Path):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "model")
    room = int(share * sum(tensor.nbytes for tensor in model.state_dict().values()))
    options = {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": str(tmp_path / "offload")}
    loaded = type(model).from_pretrained(tmp_path / "model", **options)
    assert "disk" in loaded.hf_device_map.values()
    found, expected = tensors_of(loaded), tensors_of(model)
    assert found.keys() == expected.keys() != set()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_accelerate_shards_a_model_by_what_is_not_split(name: str):
    model = MODELS[name]()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert all(wrapped(layer) for layer in model.modules() if type(layer).__name__.endswith("Layer"))


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "LiT"])  # FSDP2 refuses its scalar
@pytest.mark.usefixtures("one_process")
def test_a_model_that_accelerate_shards_answers_as_before(name: str):
    model = MODELS[name]().eval()
    expected = tensors_of(model)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = SimpleNamespace(  # a real one shards on GPUs only
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("dp_shard",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp_shard",)),
        mixed_precision="no",
        is_main_process=True,
    )
    found = tensors_of(fsdp2_prepare_model(accelerator, model))
    assert isinstance(model, FSDPModule)
    assert found.keys() == expected.keys() != set()
    for output, tensor in found.items():
        assert torch.equal(tensor, expected[output]), output


def test_the_loss_is_computed_where_the_decoder_is():
    model = MawsMAEForPreTraining(tiny_config())
    predictions = model(IMAGES).logits.to(META)
    model.decoder.forward = lambda *_: predictions
    assert model(IMAGES).loss.device == META


def test_pairs_are_compared_where_the_images_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # of which this device has none
    model = tiny_lit()
    model.vision_model.to(META)
    model.visual_projection.to(META)
    ids = torch.tensor([[0, 5, 6, 2], [0, 7, 8, 2]])
    outputs = model(input_ids=ids, pixel_values=IMAGES.to(META), return_loss=True)
    assert outputs.loss.device == outputs.logits_per_text.device == META
