"""The one numbering of tokens: special ids, then each modality's range, in the order of the table.

Owns names, ranges and the fingerprint. Shards hold raw codes (design decision 3); offsets are added from here at batch time.
Imports no torch or numpy: the model, the checkpoint and the data path all read it.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uniaudio.configs.vocabulary import load_table
from uniaudio.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """A table of token ids.

    name: where it came from; not part of its identity.
    specials: names of ids 0, 1, ...; ids up to `reserved` have no name.
    ranges: (modality, first id, entries of a level, levels), ascending and gapless behind the reserved ids.
    mask: name of the special token that hides an audio code; `audio`: the last id of the audio range, behind its levels.
    """

    name: str
    reserved: int
    specials: tuple[str, ...]
    mask: str
    ranges: tuple[tuple[str, int, int, int], ...]

    @cached_property
    def size(self) -> int:
        """V: number of ids."""
        return max(self.modality(name).stop for name, *_ in self.ranges)

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.specials)}

    @cached_property
    def _ranges_by_name(self) -> dict[str, tuple[int, int, int]]:
        return {name: (start, entries, levels) for name, start, entries, levels in self.ranges}

    def special(self, name: str) -> int:
        """Id of a special token, `<start>` say; UserError where the table has none of that name."""
        if name not in self._special_ids:
            raise UserError(f"vocabulary {self.name} has no special token of that name", seen=name, allowed=" ".join(self.specials))
        return self._special_ids[name]

    def _range(self, modality: str) -> tuple[int, int, int]:
        if modality not in self._ranges_by_name:
            raise UserError(f"vocabulary {self.name} has no such modality", seen=modality, allowed=", ".join(self._ranges_by_name))
        return self._ranges_by_name[modality]

    def modality(self, name: str) -> range:
        """Ids of a modality; audio: all levels, and the mask id where it lies in the audio range."""
        start, entries, levels = self._range(name)
        return range(start, start + entries * levels + (name == "audio" == self.mask))

    @property
    def num_audio_levels(self) -> int:
        """Codebooks that have ids; at least the model's num_codebooks."""
        return self._range("audio")[2]

    def audio_level(self, level: int) -> range:
        """Ids of codebook `level`, counted from 0."""
        start, entries, levels = self._range("audio")
        if not 0 <= level < levels:
            raise UserError(f"vocabulary {self.name} has no such audio level", seen=level, allowed=f"0..{levels - 1}")
        return range(start + level * entries, start + (level + 1) * entries)

    @cached_property
    def audio_mask(self) -> int:
        """Id that hides an audio code (speech editing)."""
        return self.modality("audio").stop - 1 if self.mask == "audio" else self.special(self.mask)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical table: equal exactly where every id means the same."""
        return hashlib.sha256(json.dumps(self._canonical(), separators=(",", ":")).encode()).hexdigest()

    def _canonical(self) -> list[object]:
        return [self.reserved, list(self.specials), self.audio_mask, [list(entry) for entry in self.ranges]]

    def token_name(self, token: int) -> str:
        """`<start>`, `<unused_57>`, `audio.1:17` (level 1, code 17), `audio:mask`, `phone:12`."""
        if not 0 <= token < self.size:
            raise UserError(f"no such id in vocabulary {self.name}", seen=token, allowed=f"0..{self.size - 1}")
        if token < self.reserved:
            return self.specials[token] if token < len(self.specials) else f"<unused_{token}>"
        modality = next(name for name in self._ranges_by_name if token in self.modality(name))
        start, entries, levels = self._range(modality)
        level, code = divmod(token - start, entries)
        if modality != "audio":
            return f"{modality}:{code}"
        return f"audio.{level}:{code}" if level < levels else "audio:mask"

    def _rows(self) -> list[str]:
        spans = [(name, self.modality(name), levels) for name, _, _, levels in self.ranges]
        return [
            f"reserved {self.reserved}",
            *(f"{name} {span.start}..{span.stop - 1} x{levels}" for name, span, levels in spans),
            f"mask {self.audio_mask}",
        ]

    def differences(self, other: "Vocabulary") -> list[tuple[str, str]]:
        """What this table and the other say where they differ, in the order of ids; empty where every id means the same."""
        specials = itertools.zip_longest(self.specials, other.specials)
        named = [tuple(f"{index} {name or '-'}" for name in pair) for index, pair in enumerate(specials)]
        rows = [*named, *itertools.zip_longest(self._rows(), other._rows(), fillvalue="-")]
        return [(left, right) for left, right in rows if left != right]

    def compare(self, other: "Vocabulary") -> str:
        """The two tables side by side, differing lines only; empty where they are the same."""
        rows = self.differences(other)
        if not rows:
            return ""
        width = max(len(left) for left, _ in [*rows, (self.name, "")])
        return "\n".join(f"{left:<{width}} | {right}" for left, right in [(self.name, other.name), *rows])

    def require_same(self, other: "Vocabulary", *, what: str) -> None:
        """Raises UserError where `other` numbers tokens differently; `what` names the thing that brought it.

        The message holds the first differences on one line; its note (`error.__notes__[0]`) is `compare`, the tables side by side.
        """
        rows = self.differences(other)
        if not rows:
            return
        shown = "; ".join(f"{right} (here: {left})" for left, right in rows[:6]) + ("; ..." if len(rows) > 6 else "")
        error = UserError(
            f"{what} was made with another vocabulary: {shown}",
            seen=f"{other.name} {other.fingerprint[:12]}",
            allowed=f"{self.name} {self.fingerprint[:12]}",
            remedy="set model.vocabulary and model.num_codebooks to what it was made with",
        )
        error.add_note(self.compare(other))
        raise error

    def to_table(self) -> dict[str, object]:
        """JSON-ready form that a checkpoint keeps; `from_table` reads it back to an equal vocabulary."""
        return {
            "name": self.name,
            "reserved": self.reserved,
            "specials": list(self.specials),
            "mask": self.mask,
            "ranges": [list(entry) for entry in self.ranges],
        }

    @classmethod
    def from_table(cls, table: dict[str, object]) -> "Vocabulary":
        """The inverse of `to_table`; UserError for a table of another form."""
        try:
            name, reserved, specials, mask, ranges = (table[key] for key in ("name", "reserved", "specials", "mask", "ranges"))
            spans = tuple((str(label), int(start), int(entries), int(levels)) for label, start, entries, levels in ranges)  # type: ignore[attr-defined]
            return cls(str(name), int(reserved), tuple(map(str, specials)), str(mask), spans)  # type: ignore[call-overload]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("not a vocabulary table", seen=error, remedy="it is the JSON form that Vocabulary.to_table writes") from error


def load_vocabulary(name: str, num_codebooks: int = 3) -> Vocabulary:
    """A shipped table (`paper`, `released`) or a YAML file of that form.

    `num_codebooks` is the model's Q: a model with more codebooks than the table's audio levels gets ids for all of them, and what follows
    audio moves up (paper at Q = 8: 9332 ids); a model with fewer keeps the table as it is.
    """
    config = load_table(name)
    return Vocabulary(Path(name).stem, config.reserved, config.specials, config.audio_mask, config.ranges(num_codebooks))
