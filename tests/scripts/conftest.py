"""The scripts import each other as the interpreter finds them beside the one it starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
