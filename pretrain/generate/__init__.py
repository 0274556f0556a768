"""A checkpoint and a user's inputs -> codes -> a waveform. For Python: `Generator`, `Inputs`, `Options` of `api`; the command is `cli`."""
