"""UniAudio: distributed pretraining of one audio language model for speech, sound, music and singing.

This root package owns what every other package may use and what knows none of them: the command line's entry
(`cli`), user-facing errors (`errors`), atomic publishing of files (`atomic`) and the logger (`log`).
"""

__version__ = "0.1.0"
