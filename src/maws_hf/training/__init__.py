"""The one training loop and what it needs: arguments, checkpoints, ranks, records."""
