"""Starts the other packages, by command line, where the user's machines are; imports `uniaudio.configs` only."""
