"""Release a model on the Hub: the command `maws-hf push` as a script, with the same options.

python scripts/push_to_hub.py runs/mae --repo_id me/my-mae --license mit --tag v1.0 --dry_run
"""

import sys

from maws_hf.cli import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
