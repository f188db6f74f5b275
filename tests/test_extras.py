"""Each extra of `setup.py` installs all that its commands import: they run here without any other package."""

import os
import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TRAIN = ["run_mae.py", "run_wsp.py", "run_lit.py", "run_finetune.py"]
EVAL = ["run_linear_probe.py", "run_low_shot.py", "run_zero_shot.py", "run_robustness.py"]


def closure(extra: str) -> set[str]:
    """Names of the distributions that `pip install maws_hf[extra]` brings."""
    found, queue = set(), [("maws-hf", extra)]
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                canonical = re.sub(r"[-_.]+", "-", requirement.name).lower()
                queue += [(canonical, inner) for inner in ("", *requirement.extras)]
    return {name for name, _ in found} - {"maws-hf"}


def run_with(extra: str, code: str, folder: Path) -> str:
    """Output of a process that has the packages of an extra and no others."""
    site = folder / "site"
    site.mkdir()
    for name in closure(extra):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)).resolve())
    process = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{site}", "OMP_NUM_THREADS": "1", "HOME": str(folder), "PATH": os.defpath},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.parametrize(("extra", "scripts"), [("train", TRAIN), ("eval", EVAL), ("space", ["space/app.py"])])
def test_scripts_import_with_their_extra_alone(extra: str, scripts: list[str], tmp_path: Path):
    code = f"""
        import runpy, sys
        sys.path.insert(0, "{ROOT / "examples" / "space"}")
        for name in {scripts}:
            runpy.run_path(f"{ROOT / "examples"}/{{name}}", run_name="imported")
            print(name)
    """
    assert run_with(extra, code, tmp_path).split() == scripts


def test_models_come_and_go_with_the_hub_extra_alone(tmp_path: Path):
    code = """
        from maws_hf import MawsViTConfig, MawsViTModel
        from maws_hf.cli import main

        def run(*arguments):
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as end:
                assert not end.code, end.code

        small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        MawsViTModel(MawsViTConfig(**small, image_size=32, patch_size=8)).save_pretrained("model")
        run("export", "model", "--output_dir", "exported")
        run("plan", "--size", "vit_b16")
        run("verify", "exported")
        print("all of them")
    """
    assert "all of them" in run_with("hub", code, tmp_path)


def test_the_models_alone_need_no_extra(tmp_path: Path):
    code = """
        import torch
        import maws_hf
        from transformers import AutoConfig, AutoModel

        small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        for name in ("MawsViTModel", "MawsMAEForPreTraining", "MawsViTForImageClassification"):
            config = maws_hf.MawsViTConfig(**small, image_size=32, patch_size=8)
            getattr(maws_hf, name)(config).save_pretrained("model")
        print(AutoModel.from_pretrained("model")(torch.rand(1, 3, 32, 32)).pooler_output.shape)
    """
    assert "torch.Size([1, 32])" in run_with("", code, tmp_path)
