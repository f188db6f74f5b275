"""The packages the emoji corpus is made from: pinned, verified by the npm client, kept outside the repository."""

from pathlib import Path

from .npm_packages import Package, cache_dir, fetch_packages

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
ICONIFY_TYPES = Package(
    "@iconify/types",
    "2.0.0",
    "MIT",
    "",
    "sha512-+wluvCrRhXrhyOmRDJ3q8mux9JkKy5SJ/v8ol2tu4FVjyYvtEzkc/3pK15ET6RKg4b4w4BmTk1+gsCUhf21Ykg==",
)
DECLARED = {package.name: (ICONIFY_TYPES,) for package in PACKAGES if package.name.startswith("@iconify-json/")}


def default_sources_dir() -> Path:
    """`maws_hf/emoji-sources` in the user's cache: one copy for all builds."""
    return cache_dir() / "emoji-sources"


def fetch_sources(sources_dir: Path) -> Path:
    """Make sure that all pinned packages lie in `sources_dir/node_modules`, and return that folder.

    Raises:
        CorpusError: see `fetch_packages`.
    """
    return fetch_packages(PACKAGES, sources_dir, size="32 MB, 230 MB unpacked", declared=DECLARED)
