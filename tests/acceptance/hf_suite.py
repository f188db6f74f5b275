"""transformers' own common model tests, taken from the source distribution of the version that is installed.

The wheel leaves the tests out and copying them here would freeze them at one version, so they are downloaded once
into `.cache/transformers-tests-<version>/` and imported as the package `hf_tests`.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

CACHE = Path(__file__).resolve().parents[2] / ".cache"
TEST_FILES = ("test_modeling_common.py", "test_configuration_common.py", "test_backbone_common.py")
# Source distributions that this suite is known to have run from; pip checks the others against its index alone.
SHA256 = {
    "5.18.0": "d89c206e42e841af7cd314b3d2b21c03e977d819cdb4aef65ada048769a644df",
    "5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
}
# The distribution holds the top level of transformers' tests only. These are the neighbours its files import;
# exporting and generation are not tested here, and the common keys are non-default values of our own choice.
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False,\n"
        "    'output_hidden_states': True,\n"
        "    'output_attentions': True,\n"
        "    'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 3,\n"
        "    'architectures': ['MawsViTModel'],\n"
        "    'id2label': {0: 'cat'},\n"
        "    'label2id': {'cat': 0},\n"
        "    'problem_type': 'multi_label_classification',\n"
        "}\n"
    ),
}


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--no-deps"]
    command += ["--no-binary", "transformers", "--no-build-isolation", f"transformers=={version}"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = list(folder.glob("transformers-*.tar.gz"))
    if finished.returncode or len(found) != 1:
        last_words = (finished.stderr or finished.stdout).strip().splitlines()[-3:]
        raise ConnectionError(f"pip did not download transformers=={version}: {' '.join(last_words)}")
    return found[0]


def _check(archive: Path, version: str) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    print(f"{archive.name} sha256 {digest}")
    expected = SHA256.get(version)
    if expected and digest != expected:
        raise RuntimeError(f"{archive.name} has sha256 {digest}, expected {expected}: not the known distribution")


def _unpack(archive: Path, version: str, package: Path) -> None:
    for name, text in STUBS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    with tarfile.open(archive) as members:
        for name in TEST_FILES:
            # Read, not extracted: nothing but these files' contents ever reaches the disk.
            content = members.extractfile(f"transformers-{version}/tests/{name}")
            (package / name).write_bytes(content.read())


def fetch(version: str = transformers.__version__) -> Path:
    """The folder that holds the package `hf_tests` of this version; downloads it if it is not there."""
    home = CACHE / f"transformers-tests-{version}"
    if home.exists():
        return home
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".transformers-tests-") as temporary:
        folder = Path(temporary)
        archive = _download(version, folder)
        _check(archive, version)
        _unpack(archive, version, folder / "home" / "hf_tests")
        try:
            (folder / "home").rename(home)
        except OSError:
            # Another worker was faster; its folder appeared by the same rename, so it is complete.
            if not home.exists():
                raise
    return home


def load() -> SimpleNamespace:
    """The mixins and helpers of `hf_tests`. Without a network the calling module is skipped; in CI it fails."""
    try:
        home = fetch()
    except (ConnectionError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"transformers' own tests are not available: {error}", allow_module_level=True)
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    modeling = importlib.import_module("hf_tests.test_modeling_common")
    return SimpleNamespace(
        BackboneTesterMixin=importlib.import_module("hf_tests.test_backbone_common").BackboneTesterMixin,
        ConfigTester=importlib.import_module("hf_tests.test_configuration_common").ConfigTester,
        ModelTesterMixin=modeling.ModelTesterMixin,
        floats_tensor=modeling.floats_tensor,
        ids_tensor=modeling.ids_tensor,
        modeling=modeling,
    )
