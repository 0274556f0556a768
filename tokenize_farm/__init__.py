"""Recordings -> shards of codes: sources, tokenizers, the universal codec, the Ray farm."""
