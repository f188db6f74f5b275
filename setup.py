from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "accelerate>=1.15",
    "psutil>=5.9",
    "datasets>=5.2",
    "torchdata>=0.11",
    "simplejpeg>=1.8",
    "matplotlib>=3.8",
    "pyyaml>=6",
    "sentencepiece>=0.2",
]
ADAPTERS = ["peft>=0.21"]
EVAL = [*TRAIN, *ADAPTERS, "evaluate>=0.4.6"]
HUB = [*TRAIN, "jinja2>=3.1"]
DEMO = [*EVAL, "resvg-py>=0.5", "jinja2>=3.1"]
SPACE = ["gradio>=6", *TRAIN]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "parameterized>=0.9",
    "ruff>=0.12",
    "setuptools>=68",
    "tensorboard>=2.17",
    "selenium>=4.30",
    *HUB,
    *DEMO,
    *SPACE,
    *ADAPTERS,
]

setup(
    name="maws_hf",
    version="0.1.0",
    description="MAWS vision transformers for Hugging Face: masked (MAE), weakly supervised (WSP), zero-shot (LiT)",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"maws_hf": ["py.typed", "data/resources/*.json", "reporting/templates/*", "hub/templates/*"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.18,<6",
        "huggingface_hub>=1.33",
        "safetensors>=0.8",
        "numpy>=1.26",
        "pillow>=12.3",
    ],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "hub": HUB,
        "demo": DEMO,
        "space": SPACE,
        "adapters": ADAPTERS,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["maws-hf=maws_hf.cli:main"]},
)
