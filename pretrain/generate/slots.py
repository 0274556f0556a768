"""The frame loop: a fixed number of rows (slots) that step together, taken by requests as they come and given back as they end.

Owns the slots, the legal ids, the stop rule and the order of work; a step's mathematics is `pretrain.model.decode`, the draw
`kernels.draw`. Every tensor has its place once: on a GPU one CUDA graph is a whole frame (Q local steps, Q draws, the book-keeping, one
global step), and what ends, and when, stands in tensors that the host looks at every few frames only.
B rows, Q codebooks, D width. A sequence's codes depend on its request alone, not on its neighbours.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from uniaudio.configs.model import ModelConfig
from uniaudio.errors import UserError
from uniaudio.kernels.draw import Number, Setting, draw
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.generate.request import FRAME_RATE, Generated, Piece, Request, to_prompt
from uniaudio.pretrain.model.decode import DecodeState
from uniaudio.pretrain.model.decode_weights import DecodeWeights
from uniaudio.pretrain.model.model import MultiScaleTransformer

LOOK_EVERY = 8  # frames between two looks of the host at a GPU: a sequence that has ended runs on for as many at most
PREFILL_FRAMES = 16_384  # of prompts that run at once
NEVER = -(2**30)  # in the history: a code that was not drawn yet


def decode_weights(model: MultiScaleTransformer, vocabulary: Vocabulary, *, int8: bool = False) -> DecodeWeights:
    """The model for `Slots`: at each level its codes are legal, at level 0 `<audio_end>` behind them. UserError without a local stack."""
    require_frames(model.config)
    legal = [torch.tensor(vocabulary.audio_level(level)) for level in range(model.config.num_codebooks)]
    legal[0] = torch.cat([legal[0], torch.tensor([vocabulary.special("<audio_end>")])])
    return DecodeWeights(model, legal, int8=int8)


def require_frames(model: ModelConfig) -> None:
    """UserError for a structure that is there to be compared by its likelihood."""
    if model.structure != "multi_scale":
        raise UserError(
            "generation is of multi-scale models",
            seen=f"model.structure {model.structure}",
            remedy="compare structures by the likelihood: uniaudio evaluate RUN --clips 0",
        )


def check_fits(request: Request, positions: int) -> None:
    """UserError where the conditions and the audio exceed the model's positions."""
    if request.frames > positions:
        room = positions - (request.frames - request.max_frames)
        raise UserError(
            "the conditions and the audio do not fit the model's positions",
            seen=f"{request.frames - request.max_frames - 1} + {request.max_frames} frames",
            allowed=f"{positions}",
            remedy=f"generate at most {max(room, 0) / FRAME_RATE:g} s, or shorten the recordings or the words",
        )


class Slots:
    """`rows` sequences side by side in caches of `max_frames` frames, prompt included. On a GPU the frame is captured here."""

    def __init__(self, weights: DecodeWeights, vocabulary: Vocabulary, *, rows: int, max_frames: int) -> None:
        levels, device = weights.config.num_codebooks, weights.device
        self.weights, self.rows, self.max_frames = weights, rows, max_frames
        self.state = DecodeState(weights, rows=rows, max_frames=max_frames)
        self.end = vocabulary.special("<audio_end>")
        self.bases = [vocabulary.audio_level(level).start for level in range(levels)]
        self.settings_BS = torch.ones(rows, len(Setting), device=device)
        self.numbers_BN = torch.zeros(rows, len(Number), dtype=torch.int64, device=device)
        self.limits_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.score_B = torch.zeros(rows, device=device)
        self.codes_BQ = torch.zeros(rows, levels, dtype=torch.int64, device=device)
        self.hidden_BD = torch.zeros(rows, weights.config.width, dtype=weights.dtype, device=device)
        self.output_BTQ = torch.zeros(rows, max_frames + 1, levels, dtype=torch.int64, device=device)
        self.histories = [torch.full((rows, head.weight.shape[0]), NEVER, dtype=torch.int32, device=device) for head in weights.heads]
        self._turn = 0
        self._index_B = torch.arange(rows, device=device)
        self._graph = self._capture() if device.type == "cuda" else None
        self._look_every = LOOK_EVERY if self._graph else 1

    @torch.inference_mode()
    def run(self, requests: Iterable[Request], *, partial: bool = False) -> Iterator[Piece]:
        """A piece for every request as it ends; with `partial` also the codes on the way, in pieces that join to the whole.

        Requests are taken from the iterable when rows are free, so that it may be long, and be made while others run.

        Raises:
            UserError: a request that does not fit the caches.
        """
        self._turn += 1
        turn = self._turn
        self.numbers_BN[:, Number.active] = 0  # what an abandoned run left
        waiting = enumerate(requests)
        busy: dict[int, tuple[int, Request]] = {}
        sent: dict[int, int] = {}
        free = list(range(self.rows))
        pending = next(waiting, None)
        while pending is not None or busy:
            if turn != self._turn:
                raise RuntimeError("these slots were taken by another run before this one ended")
            taken = []
            while pending is not None and len(free) >= pending[1].rows:
                self._check(pending[1])
                rows, free = free[: pending[1].rows], free[pending[1].rows :]
                taken.append((rows, pending[1]))
                busy[rows[0]], sent[rows[0]] = pending, 0
                pending = next(waiting, None)
            self._admit(taken)
            for _ in range(self._look_every):
                self.frame()
            frames, active = self.numbers_BN[:, [Number.frame, Number.active]].T.tolist()
            for row, (index, request) in list(busy.items()):
                ended = not active[row]
                codes = self._codes(row, sent[row], frames[row]) if partial or ended else None
                if ended:
                    whole = codes if sent[row] == 0 else self._codes(row, 0, frames[row])
                    assert codes is not None and whole is not None
                    yield Piece(index, codes, self._whole(row, request, whole))
                    del busy[row]
                    released = [row, int(self.numbers_BN[row, Number.free])][: request.rows]
                    self.state.release(released)
                    free += released
                elif codes is not None and len(codes):
                    yield Piece(index, codes, None)
                    sent[row] = frames[row]

    def frame(self) -> None:
        """One frame of every row."""
        if self._graph is None:
            self._frame()
        else:
            self._graph.replay()

    @torch.inference_mode()
    def _frame(self) -> None:
        for level, base in enumerate(self.bases):
            draw(
                self.state.level_logits(self.hidden_BD, self.codes_BQ, level), self.settings_BS, self.numbers_BN, self.histories[level],
                self.score_B, self.codes_BQ, level=level, base=base, end=None if level else self.end, backend=self.weights.backend,
            )  # fmt: skip
        frame_B, active_B = self.numbers_BN[:, Number.frame], self.numbers_BN[:, Number.active]
        self.output_BTQ[self._index_B, frame_B] = self.codes_BQ
        going_B = active_B * (self.codes_BQ[:, 0] != self.end)
        frame_B += going_B
        active_B.copy_(going_B * (frame_B < self.limits_B))
        self.hidden_BD.copy_(self.state.step(self.codes_BQ, active_B))

    def _capture(self) -> "torch.cuda.CUDAGraph":
        """The frame as a graph. No row is active, so the trial runs leave no trace."""
        side = torch.cuda.Stream(self.weights.device)
        side.wait_stream(torch.cuda.current_stream(self.weights.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles the kernels, fills the library's workspaces
                self._frame()
        torch.cuda.current_stream(self.weights.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._frame()
        return graph

    def _check(self, request: Request) -> None:
        check_fits(request, self.weights.config.max_positions)
        if request.frames > self.max_frames or request.rows > self.rows:
            raise UserError(
                "a request does not fit the slots",
                seen=f"{request.frames} frames, {request.rows} rows",
                allowed=f"{self.max_frames} frames, {self.rows} rows",
                remedy="make the slots larger, or leave out guidance",
            )

    def _admit(self, taken: list[tuple[list[int], Request]]) -> None:
        """Runs the prompts of new requests, in groups of bounded size, and sets their rows."""
        group: list[tuple[list[int], Request]] = []
        for entry in sorted(taken, key=lambda entry: entry[1].document.codes_LQ.shape[0]):
            if group and entry[1].document.codes_LQ.shape[0] * sum(other.rows for _, other in [*group, entry]) > PREFILL_FRAMES:
                self._start(group)
                group = []
            group.append(entry)
        if group:
            self._start(group)

    def _start(self, group: list[tuple[list[int], Request]]) -> None:
        rows, prompts, settings, numbers, limits = [], [], [], [], []
        for places, request in group:
            documents = [request.document, request.free] if request.guided else [request.document]
            values = {
                Number.given: places[0],
                Number.free: places[-1],
                Number.top_k: request.sampling.top_k,
                Number.seed: request.seed,
                Number.frame: 0,
                Number.open_from: request.min_frames,
                Number.active: 1,
            }
            for place, document in zip(places, documents, strict=True):
                assert document is not None
                rows.append(place)
                prompts.append(to_prompt(document))
                settings.append(request.sampling.settings())
                numbers.append([values[name] for name in Number])
                limits.append(request.max_frames)
        hidden_XD = self.state.prefill(prompts, rows=rows)
        device = self.weights.device
        index = torch.tensor(rows, device=device)
        self.hidden_BD[index] = hidden_XD
        self.settings_BS[index] = torch.tensor(settings, device=device)
        self.numbers_BN[index] = torch.tensor(numbers, device=device)
        self.limits_B[index] = torch.tensor(limits, device=device)
        self.score_B[index] = 0
        for history_BK in self.histories:
            history_BK[index] = NEVER

    def _codes(self, row: int, first: int, end: int) -> np.ndarray:
        """Raw codes of frames first..end-1 of a row, (T, Q) uint16."""
        ids_TQ = self.output_BTQ[row, first:end].cpu().numpy()
        return (ids_TQ - np.array(self.bases)).astype(np.uint16)

    def _whole(self, row: int, request: Request, codes_TQ: np.ndarray) -> Generated:
        stopped = len(codes_TQ) < request.max_frames
        drawn = codes_TQ.size + stopped  # the end was drawn too
        return Generated(codes_TQ, stopped, float(self.score_B[row]) / max(drawn, 1))


def generate_codes(
    model: MultiScaleTransformer, vocabulary: Vocabulary, requests: list[Request], *, rows: int | None = None
) -> list[Generated]:
    """All requests, in order, on slots made for them; `rows` side by side at most (all unless given)."""
    weights = decode_weights(model, vocabulary)
    for request in requests:
        check_fits(request, weights.config.max_positions)
    most = sum(request.rows for request in requests)
    widest = max(request.rows for request in requests)
    slots = Slots(weights, vocabulary, rows=max(min(rows or most, most), widest), max_frames=max(request.frames for request in requests))
    found = {piece.index: piece.whole for piece in slots.run(requests) if piece.whole is not None}
    return [found[index] for index in range(len(requests))]
