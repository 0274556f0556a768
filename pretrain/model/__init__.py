"""The multi-scale Transformer (paper, section Model): mathematics only; engines, data and sampling live elsewhere."""
