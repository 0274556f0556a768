"""One step of codec training: reconstruct, compare, let the discriminators judge, update both sides.

Owns networks, optimizers and the moving average during training, and the capture of the step as a CUDA graph.
The schedule, the logs and the files are `train.py`'s. A step reads its batch on the device and never waits for it.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from uniaudio.configs.codec import CodecConfig
from uniaudio.errors import UserError
from uniaudio.tokenize_farm.codec.data import PackedRecordings
from uniaudio.tokenize_farm.codec.discriminators import Discriminators
from uniaudio.tokenize_farm.codec.group import Group
from uniaudio.tokenize_farm.codec.grow import grow_from
from uniaudio.tokenize_farm.codec.losses import (
    GradientBalance,
    ReconstructionLoss,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    louder_loss,
)
from uniaudio.tokenize_farm.codec.model import Block, UniversalCodec
from uniaudio.tokenize_farm.codec.perceptual import IntelligibilityLoss, QualityLoss

COMPARED = ("mel", "spectrum", "quality", "intelligibility")
STATISTICS = (*COMPARED, "louder", "commitment", "codebook", "gradient_norm", "discriminator", "adversarial", "features")
STATEFUL = ("codec", "average", "discriminators", "balance", "optimizer", "discriminator_optimizer")
GRAPH_WARMUP = 3  # eager steps before a capture: they create optimizer states, FFT plans and compiled kernels


class CodecStep:
    """Networks and optimizers, and `run(discriminate)`, which does one step and leaves its figures in `statistics`."""

    def __init__(self, config: CodecConfig, data: PackedRecordings, device: torch.device, group: Group) -> None:
        self.config, self.data, self.device, self.group = config, data, device, group
        train, losses = config.train, config.losses
        self.codec = UniversalCodec(config.model).to(device).train()
        self.discriminators = Discriminators(train.discriminator_scales, train.discriminator_channels).to(device)
        self.discriminators.to(memory_format=torch.channels_last)
        self.reconstruction = ReconstructionLoss(config.model.sample_rate).to(device)
        self.quality, self.intelligibility = QualityLoss().to(device), IntelligibilityLoss().to(device)
        shares = {name: getattr(losses, name) for name in ("spectrum", "quality", "intelligibility", "judges")}
        self.balance = GradientBalance("mel", losses.mel, shares).to(device)
        self.all_levels_share = torch.full((), train.all_levels_probability[0], device=device)
        self.trained = self.codec.decoder if train.decoder_only else self.codec
        if train.decoder_only:
            self.codec.requires_grad_(False).eval()
            self.trained.requires_grad_(True).train()
        self.levels = torch.tensor(train.levels or range(1, config.model.num_codebooks + 1), device=device)
        self.optimizer = self._adamw(self.trained, train.lr)
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
    def initialize(self, trained: UniversalCodec | None) -> None:
        """Before the first step: the function of a trained codec, or codebooks that lie on data; the same in every process."""
        if trained is None:
            samples, _ = self.data.draw(self.config.train.batch_size)
            self.codec.quantizer.initialize(self.codec.encoder(self.codec.spectral(samples), None))
        elif self.config.train.decoder_only and trained.config != self.codec.config:
            theirs, ours = trained.config.model_dump(), self.codec.config.model_dump()
            raise UserError(
                "train.decoder_only keeps the codes, so the codec must have the shape of train.init_from",
                seen=", ".join(f"model.{key} {ours[key]}, there {theirs[key]}" for key in ours if ours[key] != theirs[key]),
                remedy="give it their values",
            )
        else:
            grow_from(self.codec, trained)
        self.group.copy_first([*self.codec.state_dict().values(), *self.discriminators.state_dict().values()])
        self.average.load_state_dict(self.codec.state_dict())

    def set_schedule(self, share: float, progress: float) -> None:
        """Both learning rates become `share` of their peak; the use of all levels goes with the progress (0 to 1)."""
        train = self.config.train
        first, last = train.all_levels_probability
        self.all_levels_share.fill_(first + (last - first) * progress)
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
        train, weights = self.config.train, self.config.losses
        recorded, voices = self.data.draw(train.batch_size)
        decoded, commitment, codebook = self._reconstruct(recorded)
        leaf = decoded.detach().requires_grad_()
        compared = [*self.reconstruction(recorded, leaf), self.quality(recorded, leaf), self.intelligibility(recorded, leaf)]
        louder = louder_loss(recorded, leaf)
        losses = dict(zip(COMPARED, compared)) | {"mel": compared[0] + weights.louder * louder}
        judged = [torch.zeros((), device=self.device)] * 3
        if discriminate:
            losses["judges"], judged = self._judge(recorded, leaf)
        gradient = self.balance(losses, leaf, {"quality": voices, "intelligibility": voices})
        if discriminate:
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(judged[0], inputs=list(self.discriminators.parameters()))
            self._update(self.discriminators, self.discriminator_optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if train.decoder_only:
            decoded.backward(gradient)
        else:
            torch.autograd.backward([decoded, weights.commitment * commitment + weights.codebook * codebook], [gradient, None])
        norm = self._update(self.trained, self.optimizer)
        with torch.no_grad():
            average = self.average.decoder if train.decoder_only else self.average
            averages, values = list(average.state_dict().values()), list(self.trained.state_dict().values())
            torch._foreach_lerp_(averages, values, 1 - train.average_decay)
            self.statistics.copy_(torch.stack([*compared, louder, commitment, codebook, norm, *judged]).detach())

    def _reconstruct(self, recorded_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(samples (B, S), commitment loss, codebook loss). A kept encoder computes in float32, as in use: bf16 changes 1 code of 10."""
        half = self.config.train.precision == "bf16"
        if not self.config.train.decoder_only:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                return self.codec(recorded_BS, self._levels())
        with torch.no_grad():
            hidden = self.codec.encoder(self.codec.spectral(recorded_BS), None)
            quantized, commitment, codebook = self.codec.quantizer(hidden, self._levels())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            spectra = self.codec.decoder(quantized, None)
        return self.codec.spectral.inverse(spectra), commitment, codebook

    def _update(self, module: torch.nn.Module, optimizer: torch.optim.AdamW) -> Tensor:
        """One step by the gradients of all processes; returns their norm before it was clipped."""
        self.group.average([p.grad for p in module.parameters() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), self.config.train.clip_norm)
        optimizer.step()
        return norm

    def _levels(self) -> Tensor:
        """How many levels each clip of the batch uses."""
        batch, total = self.config.train.batch_size, self.config.model.num_codebooks
        some = self.levels[torch.randint(len(self.levels), (batch,), device=self.device)]
        return torch.where(torch.rand(batch, device=self.device) < self.all_levels_share, total, some)

    def _judge(self, recorded: Tensor, decoded: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The discriminators on a part of the batch: the loss of `decoded` before them, and (their own loss, verdicts, features).

        One forward pass serves both sides, so the codec follows the discriminators as they were before their update.
        """
        train = self.config.train
        clips = min(train.discriminator_batch, train.batch_size)
        size = min(train.discriminator_frames * self.config.model.hop, recorded.shape[1])
        first = (torch.rand(clips, 1, device=self.device) * (recorded.shape[1] - size + 1)).long()
        window = first + torch.arange(size, device=self.device)
        pair = torch.cat([recorded[:clips].gather(1, window), decoded[:clips].gather(1, window)])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            verdicts, inner = self.discriminators(pair)
        real, fake = [v[:clips] for v in verdicts], [v[clips:] for v in verdicts]
        loss, adversarial = discriminator_loss(real, fake), adversarial_loss(fake)
        features = feature_loss([[x[:clips] for x in layers] for layers in inner], [[x[clips:] for x in layers] for layers in inner])
        return features + self.config.losses.adversarial * adversarial, [loss, adversarial, features]

    def synchronize(self) -> None:
        """Makes what each process counts for itself (use of the codes) the same in all of them, and the points codes may move to."""
        for level in self.codec.quantizer.levels:
            self.group.average([level.usage])
            self.group.copy_first([level.recent])

    def state(self) -> dict[str, object]:
        """Everything the next step depends on, but the data; `processes` holds what is each process's own."""
        cuda = self.device.type == "cuda"
        own = {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None}
        own |= {"usage": [level.usage.cpu() for level in self.codec.quantizer.levels], "sizes": self.balance.sizes.cpu()}
        return {name: getattr(self, name).state_dict() for name in STATEFUL} | {"processes": self.group.collect(own)}

    def load_state(self, state: dict) -> None:
        """Goes back to a `state()`. A process that had no part in it goes on from its own seed."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        if self.group.rank < len(state["processes"]):
            own = state["processes"][self.group.rank]
            self.balance.sizes.copy_(own["sizes"])
            for level, usage in zip(self.codec.quantizer.levels, own["usage"]):
                level.usage.copy_(usage)
            torch.set_rng_state(own["rng"].cpu())
            if self.device.type == "cuda" and own["cuda_rng"] is not None:
                torch.cuda.set_rng_state(own["cuda_rng"].cpu(), self.device)


def _on_side_stream(work: Callable[[], None]) -> None:
    """Runs `work` on a stream of its own, as a capture demands of the steps before it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
