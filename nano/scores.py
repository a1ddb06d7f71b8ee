"""How well nano does: counts, what they must reach, and how sure one can be of them.

Inputs: right answers out of so many → outputs: a share with its 95 % interval, verdicts, and `scores.json`, from which
the model card is written.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Literal

import msgspec

from ..apps.cli.common import table
from ..runtime.manifest import MANIFEST_NAME

SCORES = Path(__file__).parent / "build" / "scores.json"

_DEVIATIONS = 1.96  # of a normal distribution, that hold 95 % of it


class Score(msgspec.Struct, frozen=True):
    """What came of one task under one condition."""

    name: str
    condition: str
    """"as recorded", or how the recordings were changed; for spoken replies the voice."""
    unit: Literal["answers", "words"]
    right: int
    """Words: all but the errors, which are those put in, left out and replaced; never below 0."""
    total: int
    limit: float | None
    """The share that must be reached, None where the score is only told."""
    seconds: float
    reference_right: int | None = None
    """What the reference implementation gets right of the same items in float32; None if it was not asked."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share (Wilson 1927): where the true one lies if the items are a random sample."""
        n, z, p = self.total, _DEVIATIONS, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def reference_difference(self) -> float | None:
        """Share minus that of the reference."""
        return None if self.reference_right is None else (self.right - self.reference_right) / self.total

    def misses(self, *, quick: bool = False) -> bool:
        """Whether the limit is missed. From a quick look at few items: whether it surely is."""
        if self.limit is None:
            return False
        return (self.interval[1] if quick else self.share) < self.limit


class Scores(msgspec.Struct, frozen=True):
    """One evaluation of one bundle."""

    bundle_sha256: str
    """See `identity`."""
    bundle_bytes: int
    machine: str
    threads: int
    quick: bool
    reference: bool
    """Whether the reference implementation answered the same questions."""
    seconds: float
    turn_ms: float
    """Median time of a silent turn."""
    realtime_factor: float
    """Median of the seconds a spoken turn takes by the seconds of its speech."""
    scores: list[Score]

    @staticmethod
    def identity(bundle: Path) -> str:
        """What tells one bundle from all others: SHA-256 of its manifest, which holds those of all its files."""
        return hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()

    def missed(self) -> list[Score]:
        """The scores that are not what they must be."""
        return [score for score in self.scores if score.misses(quick=self.quick)]

    def table(self) -> str:
        """The scores in columns, for people."""
        head = ["", "", "right", "of", "", "%", "95 % interval", "at least", "reference", "difference", "seconds", ""]
        rows = [self._row(score) for score in self.scores]
        return table([head, *rows], right=frozenset({2, 3, 5, 7, 8, 9, 10}))

    def _row(self, score: Score) -> list[str]:
        low, high = score.interval
        difference = score.reference_difference
        return [
            score.name,
            score.condition,
            str(score.right),
            str(score.total),
            score.unit,
            f"{100 * score.share:.1f}",
            f"{100 * low:.1f} – {100 * high:.1f}",
            "" if score.limit is None else f"{100 * score.limit:.1f}",
            "" if score.reference_right is None else f"{100 * score.reference_right / score.total:.1f}",
            "" if difference is None else f"{100 * difference:+.1f}",
            f"{score.seconds:.0f}",
            "too low" if score.misses(quick=self.quick) else "",
        ]

    def save(self, file: Path = SCORES) -> None:
        """Write `scores.json`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def load(cls, file: Path = SCORES) -> Scores:
        """Read what `save` wrote."""
        return msgspec.json.decode(file.read_bytes(), type=cls)
