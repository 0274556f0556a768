"""The public UniAudio checkpoint as a model of this project: its pickle, its training arguments, its names; read, never executed."""
