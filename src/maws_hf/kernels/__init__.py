"""Faster forms of single operations for one kind of device; they know nothing of models."""
