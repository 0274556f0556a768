"""One step of codec training: reconstruct, compare, let the discriminators judge, update both sides.

Owns networks, optimizers and the moving average during training, and the capture of the step as a CUDA graph.
The schedule, the logs and the files are `train.py`'s. A step reads its batch on the device and never waits for it.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from uniaudio.configs.codec import CodecConfig
from uniaudio.tokenize_farm.codec.data import PackedRecordings
from uniaudio.tokenize_farm.codec.discriminators import Discriminators
from uniaudio.tokenize_farm.codec.losses import (
    LoudnessLoss,
    ReconstructionLoss,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from uniaudio.tokenize_farm.codec.model import Block, UniversalCodec

STATISTICS = ("mel", "spectrum", "loudness", "commitment", "codebook", "gradient_norm", "discriminator", "adversarial", "features")
GRAPH_WARMUP = 3  # eager steps before a capture: they create optimizer states, FFT plans and compiled kernels


class CodecStep:
    """Networks and optimizers, and `run(discriminate)`, which does one step and leaves its figures in `statistics`."""

    def __init__(self, config: CodecConfig, data: PackedRecordings, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        train = config.train
        self.codec = UniversalCodec(config.model).to(device).train()
        self.discriminators = Discriminators(train.discriminator_scales, train.discriminator_channels).to(device)
        self.discriminators.to(memory_format=torch.channels_last)
        self.reconstruction = ReconstructionLoss(config.model.sample_rate).to(device)
        self.loudness = LoudnessLoss(config.model.sample_rate).to(device)
        self.optimizer = self._adamw(self.codec, train.lr)
        self.discriminator_optimizer = self._adamw(self.discriminators, train.discriminator_lr)
        self.statistics = torch.zeros(len(STATISTICS), device=device)
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._eager_steps = {False: 0, True: 0}
        self.average = deepcopy(self.codec).eval()
        if train.compile:
            for module in self.codec.modules():
                if isinstance(module, Block):
                    module.compile(dynamic=False)

    def _adamw(self, module: torch.nn.Module, lr: float) -> torch.optim.AdamW:
        """Weight decay on matrices only; learning rates are tensors so that a captured step sees them change."""
        train, cuda = self.config.train, self.device.type == "cuda"
        matrices = [p for n, p in module.named_parameters() if p.dim() > 1 and "codes" not in n]
        others = [p for n, p in module.named_parameters() if not (p.dim() > 1 and "codes" not in n)]
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
        rate = torch.tensor(lr, device=self.device) if cuda else lr
        return torch.optim.AdamW(groups, lr=rate, betas=train.betas, fused=cuda, capturable=cuda)

    @torch.no_grad()
    def initialize(self) -> None:
        """Puts the codebooks on data; once, before the first step."""
        self.codec.quantizer.initialize(self.codec.encoder(self.codec.spectral(self.data.draw(self.config.train.batch_size)), None))
        self.average.load_state_dict(self.codec.state_dict())

    def set_rates(self, share: float) -> None:
        """Both learning rates become `share` of their peak."""
        train = self.config.train
        for optimizer, peak in ((self.optimizer, train.lr), (self.discriminator_optimizer, train.discriminator_lr)):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(peak * share)
                else:
                    group["lr"] = peak * share

    def run(self, discriminate: bool) -> None:
        """One step; from the second phase of `discriminate` on, as a captured graph where the config says so."""
        if not self.config.train.cuda_graph or self.device.type != "cuda":
            self._step(discriminate)
        elif discriminate in self._graphs:
            self._graphs[discriminate].replay()
        elif self._eager_steps[discriminate] < GRAPH_WARMUP:
            self._eager_steps[discriminate] += 1
            _on_side_stream(lambda: self._step(discriminate))
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(discriminate)
            self._graphs = {discriminate: graph}
            graph.replay()

    def _step(self, discriminate: bool) -> None:
        train, losses = self.config.train, self.config.losses
        recorded = self.data.draw(train.batch_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            decoded, commitment, codebook = self.codec(recorded, self._levels())
        leaf = decoded.detach().requires_grad_()
        mel, spectrum = self.reconstruction(recorded, leaf)
        loudness = self.loudness(recorded, leaf)
        gradient = torch.autograd.grad(losses.mel * mel + losses.spectrum * spectrum + losses.loudness * loudness, leaf)[0]
        judged = [torch.zeros((), device=self.device)] * 3
        if discriminate:
            extra, judged = self._judge(recorded, leaf)
            gradient = gradient + extra
        quantization = losses.commitment * commitment + losses.codebook * codebook
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([decoded, quantization], [gradient, None])
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), train.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            averages, values = list(self.average.state_dict().values()), list(self.codec.state_dict().values())
            torch._foreach_lerp_(averages, values, 1 - train.average_decay)
            self.statistics.copy_(torch.stack([mel, spectrum, loudness, commitment, codebook, norm, *judged]).detach())

    def _levels(self) -> Tensor:
        """How many levels each clip of the batch uses."""
        batch, total = self.config.train.batch_size, self.config.model.num_codebooks
        some = torch.randint(1, total + 1, (batch,), device=self.device)
        return torch.where(torch.rand(batch, device=self.device) < self.config.train.all_levels_probability, total, some)

    def _judge(self, recorded: Tensor, decoded: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Updates the discriminators on a part of the batch; returns the gradient with respect to `decoded`.

        One forward pass serves both sides, so the codec follows the discriminators as they were before this update.
        """
        train, losses = self.config.train, self.config.losses
        clips = min(train.discriminator_batch, train.batch_size)
        size = min(train.discriminator_frames * self.config.model.hop, recorded.shape[1])
        first = (torch.rand(clips, 1, device=self.device) * (recorded.shape[1] - size + 1)).long()
        window = first + torch.arange(size, device=self.device)
        pair = torch.cat([recorded[:clips].gather(1, window), decoded[:clips].gather(1, window)])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            verdicts, inner = self.discriminators(pair)
        real, fake = [v[:clips] for v in verdicts], [v[clips:] for v in verdicts]
        loss = discriminator_loss(real, fake)
        parameters = list(self.discriminators.parameters())
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, retain_graph=True, inputs=parameters)
        adversarial = adversarial_loss(fake)
        features = feature_loss([[x[:clips] for x in layers] for layers in inner], [[x[clips:] for x in layers] for layers in inner])
        (gradient,) = torch.autograd.grad(losses.adversarial * adversarial + losses.features * features, decoded)
        torch.nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        self.discriminator_optimizer.step()
        return gradient, [loss, adversarial, features]

    def state(self) -> dict[str, object]:
        """Everything the next step depends on, but the data."""
        cuda = self.device.type == "cuda"
        return {
            "codec": self.codec.state_dict(),
            "average": self.average.state_dict(),
            "discriminators": self.discriminators.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state(self, state: dict) -> None:
        """Goes back to a `state()`."""
        for name in ("codec", "average", "discriminators", "optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


def _on_side_stream(work: Callable[[], None]) -> None:
    """Runs `work` on a stream of its own, as a capture demands of the steps before it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
