"""Room on the disks that a run writes to."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from .health_findings import Finding, in_bytes

_LEAST_CACHE = 5 << 30
_LEAST_SHARED = 1 << 30
_BYTES_A_PARAMETER = 4 + 8  # weights and both moments of AdamW, all float32


def check_disks(output_dir: Path | None, size: str, kept: int) -> Iterator[Finding]:
    """The run's folder against its checkpoints, the cache of the Hub, and the memory that data workers share.

    Args:
        kept: checkpoints that remain, at least 2, as in a run.
    """
    checkpoint = parameters_of(size) * _BYTES_A_PARAMETER
    needed = (kept + 1) * checkpoint  # one is written before the oldest goes
    what = f"{size} needs {in_bytes(needed)} for {kept} checkpoints and one being written"
    yield _room("output_dir", output_dir or Path(), needed, what, "choose another --output_dir, or free some", "fails")
    yield _room("cache of the Hub", Path(constants.HF_HUB_CACHE), _LEAST_CACHE, "", "set HF_HOME elsewhere", "warning")
    shared = Path("/dev/shm")
    if shared.is_dir():
        advice = "data workers pass batches through it: start the container with --shm-size=8g"
        yield _room("shared memory", shared, _LEAST_SHARED, "", advice, "warning")


def parameters_of(size: str) -> int:
    """Of MAE's encoder and decoder together; a head of 28,000 classes weighs about as much as the decoder.

    Not counted is LiT's text tower.
    """
    import torch

    from ..models.configuration_maws_vit import MawsViTConfig
    from ..models.modeling_maws_mae import MawsMAEForPreTraining

    with torch.device("meta"):
        model = MawsMAEForPreTraining(MawsViTConfig.from_size(size))
    return sum(parameter.numel() for parameter in model.parameters())


def _room(what: str, folder: Path, needed: int, why: str, advice: str, status: str) -> Finding:
    try:
        place = folder.expanduser().absolute()
    except RuntimeError:
        return Finding(what, "fails", f"{folder} lies in a home that is not known", advice)
    while not os.path.exists(place):  # it is made when the run starts
        place = place.parent
    if not place.is_dir():
        return Finding(what, "fails", f"{place} is a file", "choose another folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(what, "fails", f"{place} cannot be written to ({os.strerror(error.errno)})", advice)
    free = shutil.disk_usage(place).free
    found = f"{in_bytes(free)} free" + (f"; {why}" if why else "")
    return Finding(what, "ok", found) if free >= needed else Finding(what, status, found, advice)


__all__ = ["check_disks", "parameters_of"]
