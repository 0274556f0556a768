"""Speed of encoding and decoding, as multiples of real time."""

import statistics
import time
from collections.abc import Callable

import torch

from uniaudio.tokenize_farm.codec.model import UniversalCodec

SECONDS = 10


def measure(codec: UniversalCodec, *, clips: int, compiled: bool = False, repeats: int = 9) -> dict[str, float]:
    """Median over `repeats` batches of `clips` clips of 10 s of noise: {"encode": x real time, "decode": ...}.

    `compiled`: with torch.compile on encoder, decoder and quantizer (its time is not counted).
    """
    device = codec.spectral.window.device
    if compiled:
        codec.encoder.compile(dynamic=False)
        codec.decoder.compile(dynamic=False)
        codec.quantizer.encode = torch.compile(codec.quantizer.encode, dynamic=False)  # type: ignore[method-assign]
    samples = torch.randn(clips, SECONDS * codec.config.sample_rate, device=device) * 0.1
    codes = codec.encode(samples)
    return {
        "encode": clips * SECONDS / _median(lambda: codec.encode(samples), device, repeats),
        "decode": clips * SECONDS / _median(lambda: codec.decode(codes), device, repeats),
    }


def _median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])
