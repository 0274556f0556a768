"""The one logger, with the rank of a distributed process in its prefix."""

import logging
import os


def get_logger(name: str = "uniaudio") -> logging.Logger:
    """A logger below `uniaudio`, set up once: time, rank (if any), level, message on standard error."""
    root = logging.getLogger("uniaudio")
    if not root.handlers:
        rank = os.environ.get("RANK")
        prefix = f"[rank {rank}] " if rank is not None else ""
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(os.environ.get("UNIAUDIO_LOG_LEVEL", "INFO").upper())
        root.propagate = False
    return root if name == "uniaudio" else root.getChild(name.removeprefix("uniaudio."))
