"""One line from a folder to a module: `uniaudio.pretrain.load_model(FOLDER)` maps vocabulary ids to logits."""

from pathlib import Path

import torch
from torch import nn

from uniaudio.configs.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.pretrain import checkpoint
from uniaudio.pretrain.data.batch import Batch
from uniaudio.pretrain.data.vocabulary import Vocabulary
from uniaudio.pretrain.model.model import MultiScaleTransformer


class LoadedModel(nn.Module):
    """A trained model in evaluation mode, with what it was made with: `run`, `vocabulary`, and the layers themselves in `model`."""

    def __init__(self, model: MultiScaleTransformer, run: RunConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model, self.run, self.vocabulary = model, run, vocabulary
        self.eval()

    def forward(
        self,
        codes_BTQ: torch.Tensor,
        *,
        text_states_BSC: torch.Tensor | None = None,
        text_positions_BS: torch.Tensor | None = None,
        prefix_lengths_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, T, Q, V): those at (t, q) predict codes_BTQ[:, t, q] from the frames before t and the codes of its frame before q.

        codes_BTQ: vocabulary ids, one document a row from `<start>` on; frames of padding only at its end. text_states_BSC with
        text_positions_BS: continuous text states and the frames that they stand at (-1: unused). prefix_lengths_B: frames that attend
        both ways, for a model of `prefix_lm`; 0 unless given.

        Raises:
            UserError: ids, sizes or frames that the model does not have.
        """
        batch = self._batch(codes_BTQ, text_states_BSC, text_positions_BS, prefix_lengths_B)
        return self.model.logits(batch)

    def _batch(self, codes: torch.Tensor, states: torch.Tensor | None, places: torch.Tensor | None, prefix: torch.Tensor | None) -> Batch:
        config, weight = self.model.config, self.model.head.projection.weight
        if codes.dim() != 3 or codes.shape[2] != config.num_codebooks or codes.is_floating_point():
            raise UserError("codes_BTQ", seen=f"{tuple(codes.shape)} {codes.dtype}", allowed=f"integers of (B, T, {config.num_codebooks})")
        rows, frames, _ = codes.shape
        if not 1 <= frames <= config.max_positions:
            raise UserError("codes_BTQ: number of frames", seen=frames, allowed=f"1..{config.max_positions}")
        if rows and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocabulary.size:
            raise UserError("codes_BTQ: ids", seen=f"{int(codes.min())}..{int(codes.max())}", allowed=f"0..{self.vocabulary.size - 1}")
        if (states is None) != (places is None):
            raise UserError("text_states_BSC and text_positions_BS come together")
        if states is None or places is None:
            states, places = torch.zeros(rows, 0, config.text_width), torch.zeros(rows, 0)
        if states.shape != (rows, places.shape[-1], config.text_width) or places.shape != (rows, states.shape[1]):
            allowed = f"({rows}, S, {config.text_width}) and ({rows}, S)"
            raise UserError("text states and positions", seen=f"{tuple(states.shape)} and {tuple(places.shape)}", allowed=allowed)
        if prefix is not None and not config.prefix_lm:
            raise UserError("prefix_lengths_B: the model was trained without prefix-LM", remedy="leave them out")
        prefix = torch.zeros(rows) if prefix is None else prefix
        batch = Batch(
            codes_BTQ=codes.long(),
            target_mask_BTQ=torch.zeros(codes.shape, dtype=torch.int8),
            document_starts_BD=torch.zeros(rows, 1, dtype=torch.int32),
            prefix_lengths_BD=prefix.reshape(rows, 1).to(torch.int32),
            positions_BT=torch.arange(frames, dtype=torch.int32).repeat(rows, 1),
            text_states_BSC=states.to(weight.dtype),
            text_positions_BS=places.to(torch.int32),
            task_ids_BD=torch.zeros(rows, 1, dtype=torch.int32),
        )
        return batch.to(weight.device)


def load_model(path: Path | str, device: torch.device | str, dtype: torch.dtype) -> LoadedModel:
    """The model of an export folder, a checkpoint, or a run's newest checkpoint."""
    return LoadedModel(*checkpoint.load_model(Path(path), device, dtype))
