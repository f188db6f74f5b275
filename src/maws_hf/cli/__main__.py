"""`python -m maws_hf.cli`."""

from . import main

main()
