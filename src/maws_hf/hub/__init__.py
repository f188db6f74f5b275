"""Checkpoints in and out: pretrained towers from packages, in folders that plain transformers reads."""
