"""Cases of `variants` for attention: inside frames (its time is bytes), and over packed documents (its time is products)."""

from collections.abc import Callable
from functools import partial

import torch

from uniaudio.kernels.benchmarks import packed
from uniaudio.kernels.benchmarks.case import Case, Results, backward_case, forms, forward_case
from uniaudio.kernels.benchmarks.measure import lognormal_documents, random
from uniaudio.kernels.frame_attention import reference as frame_reference
from uniaudio.kernels.frame_attention import triton_kernels as frame
from uniaudio.kernels.varlen_attention import backward as varlen_backward
from uniaudio.kernels.varlen_attention import forward as varlen_forward
from uniaudio.kernels.varlen_attention import varlen_attention
from uniaudio.kernels.varlen_attention.boundaries import document_spans
from uniaudio.kernels.varlen_attention.tiles import Launch, copies_in_bulk, default_plan

NAMES = ("query", "key", "value")
VARLEN_FRAMES = 8192
FRAMES = 8192  # of frame attention
FRAME = [frame.Launch(*form) for form in ((16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 4))]
SINGLE = {
    "forward": [
        Launch(64, 64, 4, 3),
        Launch(64, 64, 4, 3, bulk=True),
        Launch(64, 64, 4, 3, bulk=True, heads_together=4),
        Launch(128, 64, 8, 3, bulk=True),
        Launch(128, 64, 8, 2, bulk=True, registers=128),
        Launch(128, 32, 8, 4, bulk=True),
        Launch(128, 32, 8, 4, bulk=True, heads_together=4),
        Launch(128, 128, 8, 2, bulk=True),
    ],
    "queries": [
        Launch(64, 64, 4, 2),
        Launch(64, 64, 4, 2, bulk=True),
        Launch(64, 64, 4, 2, bulk=True, heads_together=4),
        Launch(64, 32, 4, 3, bulk=True),
        Launch(128, 64, 8, 2, bulk=True),
        Launch(128, 32, 8, 3, bulk=True),
    ],
    "keys": [
        Launch(64, 64, 4, 2),
        Launch(64, 64, 4, 2, bulk=True),
        Launch(64, 32, 4, 3, bulk=True),
        Launch(64, 64, 8, 2, bulk=True),
        Launch(128, 64, 8, 2, bulk=True),
        Launch(128, 64, 8, 2, bulk=True, heads_together=4),
        Launch(128, 32, 8, 2, bulk=True),
    ],
}
PACKED = {
    "forward": [Launch(64, 32, 4, 3), Launch(64, 32, 4, 3, bulk=True), Launch(64, 32, 4, 4, bulk=True), Launch(128, 32, 8, 4, bulk=True)],
    "queries": [Launch(64, 32, 4, 3), Launch(64, 32, 4, 3, bulk=True), Launch(64, 32, 4, 2, bulk=True)],
    "keys": [
        Launch(64, 64, 4, 2),
        Launch(64, 64, 4, 2, bulk=True),
        Launch(64, 32, 4, 3),
        Launch(64, 32, 4, 3, bulk=True),
        Launch(64, 64, 8, 2, bulk=True),
    ],
}


def _frame(codes: int, backward: bool) -> Case:
    """frame_attention of 12 heads of width 128."""
    inputs = {"qkv": random(FRAMES, codes, 12, 3, 128, grad=False)}
    qkv = inputs["qkv"]
    size = 2.0 * FRAMES * codes * 12 * 128
    if backward:
        grad = random(FRAMES, codes, 12 * 128, grad=False)
        return backward_case(
            FRAME, lambda launch: (frame.backward(qkv, grad, launch),), frame_reference.frame_attention, inputs, [grad], 7 * size
        )
    return forward_case(FRAME, partial(frame.forward, qkv), frame_reference.frame_attention, inputs, 4 * size)


def _varlen(layout: str, part: str) -> Case:
    """One kernel of varlen attention: one document of 8192, or 4 rows of lognormal documents of `heads`x`width`."""
    heads, width = (12, 128) if layout == "single" else map(int, layout.split("x"))
    documents = [[0]] if layout == "single" else lognormal_documents(4, VARLEN_FRAMES)
    starts = packed.boundaries(documents, VARLEN_FRAMES)
    generator = torch.Generator(device="cuda").manual_seed(7)
    shape = (len(documents), VARLEN_FRAMES, heads)
    qkv = torch.randn(*shape, 3, width, device="cuda", dtype=torch.bfloat16, generator=generator)
    grad = torch.randn(*shape[:2], heads * width, device="cuda", dtype=torch.bfloat16, generator=generator)
    spans = document_spans(starts, None, VARLEN_FRAMES)
    plan = default_plan(width, qkv.dtype, packed=layout != "single", bulk=copies_in_bulk(qkv.device))
    out, sums = varlen_forward.forward(qkv, spans, plan.forward)
    deltas, grad_qkv = torch.full_like(sums, float("nan")), torch.full_like(qkv, float("nan"))
    varlen_backward.backward_queries(qkv, out, sums, grad, deltas, torch.empty_like(qkv), spans, plan.queries)
    names = {"forward": ("out",), "queries": ("query",), "keys": ("key", "value")}[part]

    def run(launch: Launch) -> Results:
        if part == "forward":
            return {"out": varlen_forward.forward(qkv, spans, launch)[0]}
        if part == "queries":
            varlen_backward.backward_queries(qkv, out, sums, grad, deltas, grad_qkv, spans, launch)
        else:
            varlen_backward.backward_keys(qkv, sums, grad, deltas, grad_qkv, spans, launch)
        return dict(zip(NAMES, grad_qkv.unbind(3)))

    def differentiated(attend: Callable[[torch.Tensor], torch.Tensor], heads: slice, dtype: torch.dtype) -> Callable[[], Results]:
        leaf = qkv[:, :, heads].to(dtype).contiguous().requires_grad_()
        if part == "forward":
            return lambda: {"out": attend(leaf).detach()}
        result = attend(leaf)
        upstream = grad.unflatten(2, (-1, width))[:, :, heads].flatten(2).to(dtype)
        return lambda: dict(zip(NAMES, torch.autograd.grad(result, leaf, upstream, retain_graph=True)[0].unbind(3)))

    def truth() -> Results:
        exact = partial(varlen_attention, document_starts_BD=starts, backend="torch")
        # a head at a time: the scores of all would not fit
        each = [differentiated(exact, slice(head, head + 1), torch.float32)() for head in range(heads)]
        return {name: torch.cat([one[name] for one in each], dim=2) for name in names}

    launches = (SINGLE if layout == "single" else PACKED)[part]
    peer = packed.cudnn if layout == "single" else packed.torch_varlen(documents, VARLEN_FRAMES)
    products = {"forward": 2, "queries": 3, "keys": 4}[part]
    return Case(
        forms(launches, run), "cudnn" if layout == "single" else "torch varlen",
        lambda: differentiated(peer, slice(None), torch.bfloat16), truth,
        products * 2.0 * heads * width * packed.pairs(documents, VARLEN_FRAMES), 8.0 * grad.numel(), (grad_qkv,),
    )  # fmt: skip


ATTENTION_CASES: dict[str, Callable[[], Case]] = {
    **{
        f"frame {codes} {('forward', 'backward')[backward]}": partial(_frame, codes, backward)
        for codes in (3, 8)
        for backward in (False, True)
    },
    **{f"single {part}": partial(_varlen, "single", part) for part in SINGLE},
    **{f"{layout} {part}": partial(_varlen, layout, part) for layout in ("12x128", "16x96") for part in PACKED},
}
