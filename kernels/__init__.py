"""Triton kernels of the multi-scale Transformer, each beside its plain reference; knows no config and no model."""
