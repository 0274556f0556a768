"""Generation on one GPU: exactness, speed, time to the first chunk of audio, and where a frame's time goes. OUT/*.json.

The weights are random, so this says nothing about audio; shapes, kernels and graphs are those of a trained model. No network.
Predicted on one H100, bf16, three codes (before the first run of this code): batch 1 540 frames/s, int8 640, batch 64 14,500, batch 128
20,500 together; first chunk 100 ms; share of the weights' bound 0.50 at batch 1. bf16 codes alone and in a batch of 16 equal.

    python tests/gpu/generate_paper_1b.py --out work/generate_h100 --phases check speed first_chunk profile
    python tests/gpu/generate_paper_1b.py --out work/generate_cpu --phases speed --run demo_cpu --device cpu    # the demo's model, fp32
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniaudio.configs.load import load_config
from uniaudio.configs.model import ModelConfig
from uniaudio.configs.run import RunConfig
from uniaudio.pretrain.data.sequence import Sequence
from uniaudio.pretrain.data.vocabulary import Vocabulary, load_vocabulary
from uniaudio.pretrain.generate.request import Request
from uniaudio.pretrain.generate.slots import Slots, decode_weights
from uniaudio.pretrain.generate.stream import WaveStream
from uniaudio.pretrain.loaded import LoadedModel
from uniaudio.pretrain.model.decode_weights import DecodeWeights
from uniaudio.pretrain.model.model import MultiScaleTransformer
from uniaudio.pretrain.sampling import Sampling
from uniaudio.tokenize_farm.tokenizers.codec import CodecTokenizer

BANDWIDTH = 2.99e12  # bytes a second, copies measured on an H100 (kernels/README.md)
PROMPT = 200


class Bench:
    """Models and requests of one device."""

    def __init__(self, config: ModelConfig, device: str, frames: int) -> None:
        self.config, self.device, self.frames = config, torch.device(device), frames
        self.vocabulary: Vocabulary = load_vocabulary(config.vocabulary, config.num_codebooks)
        self.backend = "triton" if self.device.type == "cuda" else "torch"

    def model(self, config: ModelConfig, dtype: torch.dtype) -> MultiScaleTransformer:
        model = MultiScaleTransformer(config, self.vocabulary, backend=self.backend, seed=None).to(self.device, dtype).eval()  # type: ignore[arg-type]
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(float(name.endswith("norm.weight")), 0.02 if parameter.dim() > 1 else 0.1)
        return model

    def request(self, seed: int, frames: int, prompt: int = PROMPT) -> Request:
        """A prompt of random codes, `frames` frames to generate, no end before."""
        rng = np.random.default_rng(seed)
        levels = [self.vocabulary.audio_level(level).start for level in range(self.config.num_codebooks)]
        codes = rng.integers(0, 1024, (prompt - seed % 7, len(levels))) + levels
        document = Sequence(codes, np.zeros(codes.shape, np.int8), np.zeros((0, 0), np.float16), np.zeros(0, np.int32), 0)
        return Request(document, Sampling(), seed, frames, frames)

    def slots(self, weights: DecodeWeights, rows: int) -> Slots:
        return Slots(weights, self.vocabulary, rows=rows, max_frames=PROMPT + self.frames + 2)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def codes_of(slots: Slots, requests: list[Request]) -> list[np.ndarray]:
    found = {piece.index: piece.whole.codes_TQ for piece in slots.run(requests) if piece.whole is not None}
    return [found[index] for index in range(len(requests))]


def check(bench: Bench) -> dict[str, Any]:
    """A small model: cached against teacher-forced logits, graph against eager, alone against in a batch."""
    config = bench.config.model_copy(update={"global_layers": min(4, bench.config.global_layers), "local_layers": 2})
    found: dict[str, Any] = {}
    frames = min(bench.frames, 24)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model = bench.model(config, dtype)
        weights = decode_weights(model, bench.vocabulary)
        requests = [bench.request(seed, frames) for seed in range(16)]
        together = codes_of(bench.slots(weights, 16), requests)
        alone = codes_of(bench.slots(weights, 1), requests)
        pairs = list(zip(together, alone, strict=True))
        found[f"{name} same codes alone and in a batch of 16"] = float(np.mean([np.array_equal(a, b) for a, b in pairs]))
        if bench.device.type == "cuda":
            eager = bench.slots(weights, 16)
            eager._graph = None
            found[f"{name} graph equals eager"] = float(
                np.mean([np.array_equal(a, b) for a, b in zip(together, codes_of(eager, requests), strict=True)])
            )
        found[f"{name} largest error of the first frames' scores"] = score_error(bench, model, requests, weights)
    return found


def score_error(bench: Bench, model: MultiScaleTransformer, requests: list[Request], weights: DecodeWeights) -> float:
    """Generation's own scores against those that the teacher-forced model gives the same codes, in nats a code."""
    slots = bench.slots(weights, len(requests))
    wholes = {piece.index: piece.whole for piece in slots.run(requests) if piece.whole is not None}
    run = load_config(RunConfig, "paper_1b", folder="runs")
    loaded = LoadedModel(model, run, bench.vocabulary)
    worst = 0.0
    for index, request in enumerate(requests[:4]):
        ids = wholes[index].codes_TQ.astype(np.int64) + slots.bases
        codes = torch.from_numpy(np.concatenate([request.document.codes_LQ, ids]))[None]
        with torch.inference_mode():
            logits = loaded(codes)[0, len(request.document.codes_LQ) :].float()
        scores = []
        for level in range(bench.config.num_codebooks):
            span = bench.vocabulary.audio_level(level)
            legal = logits[:, level, span.start : span.stop].log_softmax(-1)
            drawn = torch.from_numpy(wholes[index].codes_TQ[:, level].astype(np.int64)).to(legal.device)
            scores.append(legal.gather(1, drawn[:, None]).mean())
        worst = max(worst, abs(float(torch.stack(scores).mean()) - wholes[index].score))
    return worst


def weight_bytes(weights: DecodeWeights) -> int:
    """Bytes of weights that one frame reads: the global blocks once, the local ones for each level, each head once."""

    def size(block: Any) -> int:
        return sum(part.weight.numel() * part.weight.element_size() for part in (block.qkv, block.out, block.up, block.down))

    heads = sum(head.weight.numel() * head.weight.element_size() for head in weights.heads)
    return sum(map(size, weights.global_blocks)) + len(weights.heads) * sum(map(size, weights.local_blocks)) + heads


def speed(bench: Bench) -> dict[str, Any]:
    """Frames a second of all rows together, in the middle of long sequences."""
    found: dict[str, Any] = {}
    on_gpu = bench.device.type == "cuda"
    precision = "bf16" if on_gpu else "fp32"
    model = bench.model(bench.config, torch.bfloat16 if on_gpu else torch.float32)
    sizes = {False: (1, 16, 64, 128), True: (1, 16)} if on_gpu else {False: (1, 8)}
    for int8, rows in [(int8, rows) for int8, several in sizes.items() for rows in several]:
        weights = decode_weights(model, bench.vocabulary, int8=int8)
        slots = bench.slots(weights, rows)
        run = slots.run([bench.request(seed, bench.frames) for seed in range(rows)], partial=True)
        next(run)  # prompts and the first frames
        times = []
        for _ in range(5):
            bench.synchronize()
            started = time.perf_counter()
            for _ in range(max(1, bench.frames // 8)):
                slots.frame()
            bench.synchronize()
            times.append((time.perf_counter() - started) / max(1, bench.frames // 8))
        step = statistics.median(times)
        found[f"{'int8' if int8 else precision} batch {rows}"] = {
            "frames/s together": round(rows / step, 1),
            "ms a step": round(1000 * step, 3),
            "times real time": round(rows / step / 50, 2),
            "share of the weights' bound": round(weight_bytes(weights) / BANDWIDTH / step, 3),
        }
        del run, slots
    return found


def first_chunk(bench: Bench) -> dict[str, Any]:
    """Milliseconds from the request to the first samples, model, graph and codec warm."""
    weights = decode_weights(bench.model(bench.config, torch.bfloat16), bench.vocabulary)
    slots, codec = bench.slots(weights, 1), CodecTokenizer({"device": str(bench.device)})
    times = []
    for seed in range(6):
        wave = WaveStream(codec)
        bench.synchronize()
        started = time.perf_counter()
        for piece in slots.run([bench.request(seed, min(bench.frames, 60))], partial=True):
            if len(wave.push(piece.codes_TQ)):
                break
        times.append(1000 * (time.perf_counter() - started))
    return {"first, ms": round(times[0], 1), "median of the others, ms": round(statistics.median(times[1:]), 1)}


def profile(bench: Bench) -> dict[str, Any]:
    """Microseconds a frame of each kernel at batch 1 and 64."""
    found: dict[str, Any] = {}
    weights = decode_weights(bench.model(bench.config, torch.bfloat16), bench.vocabulary)
    for rows in (1, 64):
        slots = bench.slots(weights, rows)
        next(slots.run([bench.request(seed, bench.frames) for seed in range(rows)], partial=True))
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(10):
                slots.frame()
            bench.synchronize()
        rows_of = sorted(profiler.key_averages(), key=lambda entry: -entry.self_device_time_total)[:14]
        timed = [entry for entry in rows_of if entry.self_device_time_total]
        found[f"batch {rows}"] = {entry.key[:70]: [round(entry.self_device_time_total / 10, 1), entry.count / 10] for entry in timed}
    return found


PHASES: dict[str, Callable[[Bench], dict[str, Any]]] = {"check": check, "speed": speed, "first_chunk": first_chunk, "profile": profile}


def main() -> None:
    """Runs the phases, each written when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--run", default="paper_1b", help="run config whose model is used; demo_cpu tries the script on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=400)
    arguments = parser.parse_args()
    bench = Bench(load_config(RunConfig, arguments.run, folder="runs").model, arguments.device, arguments.frames)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.phases:
        started = time.perf_counter()
        found = PHASES[name](bench)
        text = json.dumps({name: found, "seconds": round(time.perf_counter() - started, 1)}, indent=1)
        (arguments.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
