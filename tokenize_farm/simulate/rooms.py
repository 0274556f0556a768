"""A bank of simulated rooms: shoeboxes of drawn size, reverberation time, speaker and microphone, by pyroomacoustics' image sources.

Room `n` of a recipe is the same on every machine; its response is worked out when it is first heard and kept.
"""

import numpy as np

from uniaudio.configs.simulate import RoomConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.audio import SAMPLE_RATE
from uniaudio.tokenize_farm.simulate.draw import Draw
from uniaudio.tokenize_farm.tokenizers.resources import require

_WALL = 0.5  # metres between a wall and what stands in the room
_TAIL = 1e-3  # share of the direct sound below which a response is cut: 60 dB
_TRIES = 100  # rooms drawn until Sabine's formula knows walls for size and reverberation time


class RoomBank:
    """Room responses by recipe and number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._responses: dict[tuple[RoomConfig, int], np.ndarray] = {}

    def reverberate(self, room: RoomConfig, number: int, samples: np.ndarray) -> np.ndarray:
        """Samples (S,) as heard in the room: direct sound at its own level and time, so that clip and copy stay frame for frame."""
        from scipy.signal import fftconvolve

        key = (room, number)
        if key not in self._responses:
            self._responses[key] = response(room, Draw(self._seed, "room", number))
        return fftconvolve(samples, self._responses[key])[: len(samples)].astype(np.float32)


def response(room: RoomConfig, draw: Draw) -> np.ndarray:
    """(R,) float64 from the direct sound, which is 1, on.

    Raises:
        MissingDependency: no pyroomacoustics.
        UserError: no room of these sizes can have such a reverberation time.
    """
    require("pyroomacoustics", needed_for="simulate: effect room")
    import pyroomacoustics

    for _ in range(_TRIES):
        size = [draw.uniform(*room.side_meters), draw.uniform(*room.side_meters), draw.uniform(*room.height_meters)]
        try:
            absorption, order = pyroomacoustics.inverse_sabine(draw.uniform(*room.rt60_seconds), size)
        except ValueError:
            continue
        break
    else:
        raise UserError(
            "simulate: no room of these sides can have such a reverberation time",
            seen=f"side_meters {room.side_meters}, rt60_seconds {room.rt60_seconds}",
            remedy="a longer time, or smaller rooms",
        )
    box = pyroomacoustics.ShoeBox(size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=order)
    box.add_source([draw.uniform(_WALL, side - _WALL) for side in size])
    box.add_microphone([draw.uniform(_WALL, side - _WALL) for side in size])
    box.compute_rir()
    heard = np.asarray(box.rir[0][0], dtype=np.float64)
    direct = int(np.argmax(np.abs(heard)))
    heard = heard[direct:] / heard[direct]
    return heard[: int(np.flatnonzero(np.abs(heard) > _TAIL)[-1]) + 1]
