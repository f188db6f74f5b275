#!/usr/bin/env python
"""Convert an original PyTorch checkpoint to a folder that `from_pretrained` reads; the same as `maws-hf convert`."""

import sys

from maws_hf.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
