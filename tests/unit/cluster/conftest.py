"""Lets the tests of this folder import the helpers beside them (refused_jobs) and in tests/ (random_shards)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
