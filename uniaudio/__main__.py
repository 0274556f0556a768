"""`python -m uniaudio` is the command `uniaudio`."""

from uniaudio.cli import main

if __name__ == "__main__":  # processes that a command starts import this module too
    main()
