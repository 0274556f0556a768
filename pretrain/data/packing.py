"""Best-fit packing of documents into rows of a fixed number of frames. Knows lengths only."""

import numpy as np


def best_fit(lengths: np.ndarray, states: np.ndarray, *, frames: int, max_documents: int, max_states: int) -> np.ndarray:
    """Row of each document, (D,) int64, rows numbered from 0: longest first, each into the fullest row that still takes it.

    lengths: (D,) frames of each document, 1..frames. states: (D,) continuous text positions, 0..max_states. A row takes at most `frames`
    frames, `max_documents` documents and `max_states` text positions. Ties go by position, so shuffle before.
    """
    row_of = np.empty(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(frames + 1)]  # rows that have so many frames free
    rooms = 0  # bit r: by_room[r] is not empty
    documents: list[int] = []
    used_states: list[int] = []
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    for document, length, wanted in zip(order.tolist(), lengths[order].tolist(), states[order].tolist()):
        row, room = -1, length
        candidates = rooms >> length
        while candidates:
            step = (candidates & -candidates).bit_length() - 1
            room += step
            row = _take(by_room[room], used_states, max_states - wanted)
            if row >= 0:
                break
            candidates >>= step + 1
            room += 1
        if row < 0:
            row, room = len(documents), frames
            documents.append(0)
            used_states.append(0)
        elif not by_room[room]:
            rooms &= ~(1 << room)
        row_of[document] = row
        documents[row] += 1
        used_states[row] += wanted
        if documents[row] < max_documents and room > length:
            by_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return row_of


def _take(rows: list[int], used_states: list[int], most: int) -> int:
    """Removes and returns the last of `rows` that holds at most `most` text positions; -1 where none does."""
    for place in range(len(rows) - 1, -1, -1):
        if used_states[rows[place]] <= most:
            return rows.pop(place)
    return -1
