"""What the kernels of packed-document attention share: launches, the order of tiles, masked tiles of a packed tensor, ranges of keys."""

# ruff: noqa: ANN001, ANN201 - the arguments of a Triton kernel are pointers and numbers of the launch
# mypy: disable-error-code=no-untyped-def

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """Rows of the tile that stays, rows of the tile that walks, warps, pipeline stages.

    `bulk`: the walk inside one document reads by bulk tensor copies (TMA), where the head is as wide as its tiles; the steps at a
    document's edges never do, as a copy would reach into other documents. `heads_together`: heads whose tiles run at one time, so that
    their keys stay in the L2 cache; 0: all. `registers`: at most so many a thread; None: as the compiler needs.

    Two stages at least for a split head in 16 bits: Triton 3.6 compiles the unpipelined walk into shared-memory reads out of range and a
    wrong result (compute-sanitizer, H100, head width 96, 64 x 64 x 4 warps x 1 stage).
    """

    rows: int
    step: int
    warps: int
    stages: int
    bulk: bool = False
    heads_together: int = 0
    registers: int | None = None


@dataclass(frozen=True)
class Plan:
    """The three launches of one attention."""

    forward: Launch
    queries: Launch
    keys: Launch


def default_plan(head_dim: int, dtype: torch.dtype, *, packed: bool, bulk: bool = False) -> Plan:
    """The launches measured best on Hopper (kernels/README.md); rows packed with several documents waste less in short steps.

    `bulk`: whether the device copies in bulk (`copies_in_bulk`). It pays for heads of 128, where it was measured: 9 % of the backward pass
    of one document a row, 4 % of all three kernels over documents of a thousand frames, 1 % over those of three hundred.
    """
    if dtype == torch.float32:
        small = Launch(32, 32, 4, 1)
        return Plan(small, small, small)
    if head_dim > 128:
        wide = Launch(64, 32, 4, 1)
        return Plan(wide, wide, wide)
    step = 32 if packed else 64
    if packed and head_dim <= 96:
        return Plan(Launch(64, 32, 4, 3), Launch(64, 32, 4, 3), Launch(64, 32, 4, 3))
    bulk = bulk and head_dim == 128
    return Plan(Launch(64, step, 4, 3, bulk and packed), Launch(64, step, 4, 2, bulk), Launch(64, 64, 4, 2, bulk))


def copies_in_bulk(device: torch.device) -> bool:
    """Whether the device has bulk tensor copies (TMA): NVIDIA GPUs from Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def head_parts(head_dim: int) -> tuple[int, int, bool]:
    """Columns of the main part, of the rest, and whether there is a rest: 96 = 64 + 32 is a quarter less work than 128.

    Triton's tiles are powers of two wide, at least 16. A head that is no sum of two of them, or wider than 128, is padded to one.
    """
    power = triton.next_power_of_2(head_dim)
    rest = head_dim - power // 2
    if head_dim < power <= 128 and rest >= 16 and rest == triton.next_power_of_2(rest):
        return power // 2, rest, True
    return max(16, power), 16, False


def query_shape(qkv_BTN3H: torch.Tensor) -> tuple[int, int, int, int, int]:
    """Rows, frames, heads of queries, those that share one key and value, and head width of a packed projection."""
    batch, frames, groups, parts, head_dim = qkv_BTN3H.shape
    return batch, frames, groups * (parts - 2), parts - 2, head_dim


def sizes(qkv_BTN3H: torch.Tensor, launch: Launch, *, heads: int) -> tuple[tuple[int], int, int]:
    """Grid, tiles a row, and heads (of all rows) together, for programs of `heads` heads each."""
    batch, frames, _, _, head_dim = qkv_BTN3H.shape
    if launch.stages < 2 and head_parts(head_dim)[2] and qkv_BTN3H.dtype != torch.float32:
        raise ValueError(f"varlen_attention: stages of a split head in 16 bits | seen: {launch.stages} | allowed: 2 or more")
    tiles = triton.cdiv(frames, launch.rows)
    return (tiles * batch * heads,), tiles, launch.heads_together or batch * heads


def bulk_source(rows_XW: torch.Tensor, launch: Launch, head_dim: int) -> tuple[object, object]:
    """Descriptors of (step, main part) and (step, rest) of rows_XW for bulk copies, or the tensor twice where the launch takes none."""
    width, rest, split = head_parts(head_dim)
    if not bulk_fits(launch, head_dim):
        return rows_XW, rows_XW
    main = TensorDescriptor.from_tensor(rows_XW, [launch.step, width])
    return main, TensorDescriptor.from_tensor(rows_XW, [launch.step, rest]) if split else main


def bulk_fits(launch: Launch, head_dim: int) -> bool:
    """Whether this launch copies in bulk: a part wider than the head would read its neighbour's columns."""
    width, rest, split = head_parts(head_dim)
    return launch.bulk and head_dim == width + (rest if split else 0)


@triton.jit
def tile_of_program(tiles, batch, heads, together, LAST_FIRST: tl.constexpr):
    """Tile, row of the batch and head of this program: `together` heads at one tile are neighbours; their heavy tiles come first."""
    program = tl.program_id(0)
    pairs = batch * heads
    group = program // (tiles * together)
    here = tl.minimum(together, pairs - group * together)
    place = program - group * tiles * together
    tile = place // here
    if LAST_FIRST:
        tile = tiles - 1 - tile
    pair = group * together + place % here
    return tile, (pair // heads).to(tl.int64), pair % heads


@triton.jit
def load_columns(rows, row_inside, ROWS_MASKED: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, H: tl.constexpr):
    """Columns FIRST.. of the rows that the (R, 1) pointers begin; 0 beyond the head width and outside `row_inside`."""
    cols = FIRST + tl.arange(0, COUNT)[None, :]
    if ROWS_MASKED:
        tile = tl.load(rows + cols, mask=row_inside[:, None] & (cols < H), other=0.0)
    elif FIRST + COUNT > H:
        tile = tl.load(rows + cols, mask=cols < H, other=0.0)
    else:
        tile = tl.load(rows + cols)
    return tile


@triton.jit
def store_columns(rows, tile, row_inside, FIRST: tl.constexpr, COUNT: tl.constexpr, H: tl.constexpr):
    """Writes what `load_columns` reads."""
    cols = FIRST + tl.arange(0, COUNT)[None, :]
    tl.store(rows + cols, tile.to(rows.dtype.element_ty), mask=row_inside[:, None] & (cols < H))


@triton.jit
def key_range(key_firsts, key_ends, line, first, last, STEP: tl.constexpr):
    """Begin, end of the unmasked walk, and end of the keys that queries first..last see."""
    begin = tl.load(key_firsts + line + first)
    end = tl.load(key_ends + line + last)
    one_document = tl.load(key_firsts + line + last) == begin
    seen_by_all = tl.where(one_document, tl.load(key_ends + line + first) - begin, 0)
    return begin, begin + seen_by_all // STEP * STEP, end


@triton.jit
def load_step(
    place, inside, source, line, column, MASKED: tl.constexpr, BULK: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, H: tl.constexpr
):
    """Columns FIRST.. of one step of a walk: by a bulk copy from row `line`, column `column` of `source`, or from the pointers `place`."""
    if BULK and not MASKED:
        tile = source.load([line, column + FIRST])
    else:
        tile = load_columns(place, inside, MASKED, FIRST, COUNT, H)
    return tile
