"""Configurations and models. Depends on torch and transformers only."""
