"""Shards -> checkpoint -> generated audio: data, model, engine, generation, evaluation."""
