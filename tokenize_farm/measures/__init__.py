"""How good sound is, in numbers: shared by `uniaudio codec evaluate` and `pretrain/evaluation`.

`signal` needs torch alone; `speech` (PESQ, STOI, DNSMOS) and `recognition` (character errors) need the packages of the extra `eval`.
Everywhere: samples (S,) float32 at 16 kHz, about [-1, 1].
"""
