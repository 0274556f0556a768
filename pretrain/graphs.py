"""The layers before the head as CUDA graphs, their forward and their backward pass: few launches of the host instead of some 1,400.

A graph replays the same kernels on the same addresses, so what varies is copied into fixed inputs, and what comes out (the state, the
parameters' gradients) lies where it lay before, until the next replay. Both share one pool of memory: activations of the forward pass are
let go while the backward pass is captured, as they are without graphs, and gradients take their places. So gradients must be read before
the next forward pass: `parallel.zero_one` does, after each micro-batch. The head stays outside: how many codes it works on is the batch's.
In a pipeline each micro-batch under way has a pair of graphs of its own, with a pool of its own: what one pair keeps, another may not take.
Where data-parallel ranks exchange weights the forward pass is several graphs, one a piece of the layers: the weights of later pieces may
still be on their way while the first ones compute.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

from uniaudio.errors import UserError

State = tuple[torch.Tensor, ...]


class GraphedLayers:
    """`layers` in a row, from a batch's tensors to the state whose first tensor is the hidden one, after `capture`.

    continues: they take such a state themselves (a later stage of a pipeline), and its hidden tensor gets a gradient. cuts: where
    another piece of the forward pass begins, in rising order. before_piece: called with the number of each piece before it runs, and with
    that of the head, their count, at the end.
    Everything must have run once before with these shapes: kernels are compiled, and libraries set up, at their first launch.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        continues: bool = False,
        cuts: Sequence[int] = (),
        before_piece: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._layers, self._continues, self._before_piece = list(layers), continues, before_piece
        self._pieces = [self._layers[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(layers)])]
        self._parameters = [parameter for layer in self._layers for parameter in layer.parameters() if parameter.requires_grad]
        self._inputs: State = ()
        self._addresses: list[int] = []

    @property
    def trained(self) -> bool:
        """Whether there is a backward pass to capture: fine-tuning may leave the head's parameters alone."""
        return bool(self._parameters)

    @property
    def captured(self) -> bool:
        """Whether there is something to replay."""
        return bool(self._inputs)

    def capture(self, batch: State) -> None:
        """Records both passes over tensors of these shapes; computes nothing.

        Raises:
            UserError: something in a layer cannot be part of a graph, or the memory does not suffice.
        """
        try:
            self._capture(batch)
        except RuntimeError as error:  # torch.OutOfMemoryError too; the capture's own end may hide what came first
            first = error.__context__ or error
            raise UserError(
                "the training step cannot be captured as a CUDA graph",
                seen=str(first).strip().split("\n")[0],
                remedy="train.cuda_graphs=false launches kernel by kernel; for memory also parallel.recompute=selective or fewer rows",
            ) from error

    def _capture(self, batch: State) -> None:
        inputs = tuple(tensor.detach().clone() for tensor in batch)
        received = [inputs[0].requires_grad_()] if self._continues else []
        self._forwards, self._backward = [torch.cuda.CUDAGraph() for _ in self._pieces], torch.cuda.CUDAGraph()
        # Other threads pin memory and copy meanwhile (loader, checkpoints): only what this one does must fit into a graph.
        together: dict[str, Any] = {"pool": torch.cuda.graph_pool_handle(), "capture_error_mode": "thread_local"}
        with _leaves(self._layers) as leaves:
            state = inputs
            for graph, piece in zip(self._forwards, self._pieces):
                with torch.cuda.graph(graph, **together):
                    for layer in piece:
                        state = layer(state)
            hidden = state[0]
            self._upstream = torch.empty_like(hidden)
            with torch.cuda.graph(self._backward, **together):
                self._gradients = torch.autograd.grad(hidden, [*leaves, *received], self._upstream, allow_unused=True)
        self._outputs = tuple(tensor.detach() for tensor in state)
        self._anchor = torch.zeros((), device=hidden.device, requires_grad=True)
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]
        self._inputs = tuple(tensor.detach() for tensor in inputs)

    def __call__(self, batch: State) -> State:
        """The state; its backward pass gives every parameter a gradient, and what it continues, valid until the next call.

        Raises ValueError where shapes are others, or a parameter has moved, since the capture.
        """
        shapes, known = ([tensor.shape for tensor in tensors] for tensors in (batch, self._inputs))
        if shapes != known:
            raise ValueError(f"tensors of a batch for a CUDA graph | seen: {shapes} | allowed: {known}, of its capture")
        if [parameter.data_ptr() for parameter in self._parameters] != self._addresses:
            raise ValueError("a parameter was given other memory since the CUDA graph was captured")
        return (_Replay.apply(batch[0] if self._continues else self._anchor, self, batch), *self._outputs[1:])

    def release(self) -> None:
        """Destroys the graphs: where one holds calls of NCCL, leaving the process group would wait for it forever."""
        if self.captured:
            for graph in (*self._forwards, self._backward):
                graph.reset()
            self._inputs = ()

    def forward_pass(self, batch: State) -> torch.Tensor:
        """Replays the forward pass on these tensors."""
        for fixed, tensor in zip(self._inputs, batch):
            fixed.copy_(tensor)
        for number, graph in enumerate(self._forwards):
            self._before_piece(number)
            graph.replay()
        self._before_piece(len(self._forwards))
        return self._outputs[0].detach()

    def backward_pass(self, upstream: torch.Tensor) -> torch.Tensor | None:
        """Replays the backward pass and hands the gradients to the parameters, which have none: without autograd's copies and checks.

        Returns that of the hidden tensor that came in, where there was one.
        """
        self._upstream.copy_(upstream)
        self._backward.replay()
        for parameter, gradient in zip(self._parameters, self._gradients):
            parameter.grad = gradient
        return self._gradients[-1].detach() if self._continues else None


class _Replay(torch.autograd.Function):
    """Puts the replays at their places in autograd's order; `source` needs a gradient: the hidden tensor, or an anchor."""

    @staticmethod
    def forward(ctx: FunctionCtx, source: torch.Tensor, graphs: GraphedLayers, batch: State) -> torch.Tensor:
        ctx.graphs = graphs  # type: ignore[attr-defined]
        return graphs.forward_pass(batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        return ctx.graphs.backward_pass(upstream), None, None  # type: ignore[attr-defined]


@contextmanager
def _leaves(layers: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """The layers over parameters that are new to autograd and share the memory of theirs; gives those that are trained, in order.

    Autograd adds up a parameter's gradient on the stream where it met the parameter first, and that may be one outside of the capture.
    """
    owners = [(module, name, own) for layer in layers for module in layer.modules() for name, own in module.named_parameters(recurse=False)]
    fresh = {own: nn.Parameter(own.detach(), requires_grad=own.requires_grad) for *_, own in owners}
    try:
        for module, name, own in owners:
            setattr(module, name, fresh[own])
        yield [leaf for layer in layers for leaf in layer.parameters() if leaf.requires_grad]
    finally:
        for module, name, own in owners:
            setattr(module, name, own)
