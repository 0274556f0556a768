"""`python -m uniaudio` is the command `uniaudio`."""

from uniaudio.cli import main

main()
