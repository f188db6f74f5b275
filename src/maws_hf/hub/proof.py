"""An export is proved in a process that cannot import `maws_hf`: plain transformers loads it and computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..models.configuration_maws_vit import as_pair
from ..models.modeling_maws_lit import MawsLiTModel
from ..models.modeling_maws_mae import MawsMAEForPreTraining
from ..models.modeling_maws_vit import MawsViTForImageClassification, MawsViTModel

LARGEST_DIFFERENCE = 1e-4  # of an output whose largest value is 1; measured are 1e-6
_OURS: dict[str, type[PreTrainedModel]] = {
    "ViTForImageClassification": MawsViTForImageClassification,
    "ViTMAEForPreTraining": MawsMAEForPreTraining,
    "VisionTextDualEncoderModel": MawsLiTModel,
    "PixioModel": MawsViTModel,
    "ViTModel": MawsViTModel,
    "Dinov2Model": MawsViTModel,
}
_OUTPUTS = {
    MawsViTForImageClassification: ("logits",),
    MawsMAEForPreTraining: ("logits", "mask", "loss"),
    MawsLiTModel: ("image_embeds", "text_embeds", "logits_per_image"),
    MawsViTModel: ("last_hidden_state", "pooler_output"),
}
# Arguments: folder of the model, file of the inputs, file for the outputs, names of the outputs.
_PLAIN_TRANSFORMERS = """
import sys
sys.modules["maws_hf"] = None
import json, torch, transformers
from safetensors.torch import load_file, save_file
folder, inputs, outputs, *names = sys.argv[1:]
with open(folder + "/config.json", encoding="utf-8") as file:
    model_class = getattr(transformers, json.load(file)["architectures"][0])
model, loading = model_class.from_pretrained(
    folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
)
if wrong := {what: sorted(map(str, keys)) for what, keys in loading.items() if keys}:
    sys.exit(f"its weights do not fit {model_class.__name__}: {wrong}")
with torch.no_grad():
    found = model.eval()(**load_file(inputs))
save_file({name: found[name].float().contiguous() for name in names}, outputs)
"""


class ProofError(RuntimeError):
    """An export does not load without this package, or does not compute what the model does."""


def prove_export(native_dir: Path, export_dir: Path) -> dict[str, float]:
    """Compares a model in our own format with its export, in float32, on two random images (and captions).

    Args:
        native_dir: folder of the model, or a Hub id.
        export_dir: what `export_model` made of it; loaded by another process, with plain transformers.

    Returns:
        Largest absolute difference of each output.

    Raises:
        ProofError: it does not load there, or an output differs by more than `LARGEST_DIFFERENCE` of its largest
            value.
    """
    export_dir = Path(export_dir)
    config = json.loads((export_dir / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in _OURS:
        raise ProofError(f"{export_dir} is not an export of ours (architectures={config.get('architectures')})")
    # Ours is gone from memory before theirs is loaded: the largest models fit once only.
    inputs, expected, masked = _our_outputs(str(native_dir), _OURS[architecture])
    found = _their_outputs(export_dir, inputs, list(expected))
    if masked is not None:  # ours predicts the masked patches only, theirs all of them
        found["logits"] = found["logits"].gather(1, masked[..., None].expand(-1, -1, found["logits"].shape[2]))
    differences = {}
    for name, ours in expected.items():
        difference = (found[name] - ours).abs().max().item()
        if not difference <= LARGEST_DIFFERENCE * max(1.0, ours.abs().max().item()):
            raise ProofError(f"{name} of {export_dir} differs from the model's by {difference:.2g}: do not use it")
        differences[name] = difference
    return differences


@torch.no_grad()
def _our_outputs(
    native_dir: str, model_class: type[PreTrainedModel]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Inputs, outputs, and for an autoencoder the `(2, masked)` places of its masked patches."""
    model = model_class.from_pretrained(native_dir, dtype=torch.float32).eval()
    inputs = _inputs(model)
    autoencoder = model_class is MawsMAEForPreTraining
    outputs = model(**inputs, **({"prediction_ratio": 1.0} if autoencoder else {}))  # theirs predicts everything
    masked = outputs["ids_mask"] if autoencoder else None
    return inputs, {name: outputs[name].float() for name in _OUTPUTS[model_class]}, masked


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = getattr(model.config, "vision_config", model.config)
    height, width = as_pair(config.image_size)
    inputs = {"pixel_values": torch.randn(2, config.num_channels, height, width, generator=generator)}
    if isinstance(model, MawsMAEForPreTraining):
        patch_height, patch_width = as_pair(config.patch_size)
        patches = (height // patch_height) * (width // patch_width)
        inputs["noise"] = torch.rand(2, patches, generator=generator)
    if isinstance(model, MawsLiTModel):
        text = model.config.text_config
        length = min(16, model.config.max_text_length, text.max_position_embeddings - 4)
        ids = torch.randint(3, text.vocab_size, (2, length), generator=generator)
        ids[:, 0] = text.bos_token_id or 0
        inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
        inputs["input_ids"][1, length // 2 :] = text.pad_token_id or 0
        inputs["attention_mask"][1, length // 2 :] = 0
    return inputs


def _their_outputs(folder: Path, inputs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    tokens = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in tokens}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with TemporaryDirectory(prefix="maws-hf-proof-") as place:
        files = [str(Path(place, name)) for name in ("inputs.safetensors", "outputs.safetensors")]
        save_file(inputs, files[0])
        finished = subprocess.run(
            [sys.executable, "-c", _PLAIN_TRANSFORMERS, str(folder.resolve()), *files, *names],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if finished.returncode:
            why = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
            raise ProofError(f"{folder} does not load in a process without maws_hf: {why}")
        return load_file(files[1])


__all__ = ["ProofError", "prove_export"]
