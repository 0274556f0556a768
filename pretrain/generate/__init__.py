"""A checkpoint and a user's inputs -> codes -> a waveform: inputs (wav, text) to views, frames one by one, pictures."""
