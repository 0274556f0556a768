"""Correctness and speed of every kernel on a GPU, beside the other backends on the same inputs in the same process.

`python -m uniaudio.kernels.benchmarks.run --out FOLDER` checks, times and writes CSV; `.variants` tries launches and forms of one kernel.
"""
