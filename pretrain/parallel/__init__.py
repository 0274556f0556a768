"""Tensor-parallel layers (`tensor`, `megatron`) and the place of a process in the layout (`layout`)."""
