"""Faster forms of single operations, each chosen by device and dtype; the models are whole and exact without them."""
