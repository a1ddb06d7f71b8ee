"""Seeing: the vision tower, trained alone until its embeddings name what a picture shows and which way it moves.

Inputs: pictures and clips, drawn anew each time → output: the state of ``thinker.visual`` (stage ``see``). The head is
the Thinker's own embedding table, as in hearing: the mean embedding of a picture is compared with the rows of the
eight colours and of the four shapes, that of each temporal patch of a clip with those of the four directions besides.
The tower never sees more than one temporal patch at a time, two frames, so each must tell the direction by itself.
Nothing but a constant is thrown away afterwards.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniVisionEncoder

from ..runtime import images
from ..runtime.messages import Image, Part, Video
from ..runtime.vision_layout import Grid, vision_layout
from . import pictures
from .chat import front
from .model import build
from .pictures import Split
from .tokenizer import tokenizer
from .training import Losses, Plan, device, device_of, finished, precision, train
from .world import COLOURS, DIRECTIONS, SHAPES

FIRST = Plan("see-first", steps=4000, learning_rate=1e-3, warmup_steps=50, ema=0.998)
SECOND = Plan("see", steps=900, learning_rate=6e-4, warmup_steps=30, ema=0.995, seed=11)
"""In the second part everything is drawn as it will be asked about; clips are as large as the processor makes them."""
_SECOND_BATCH = 36, 4
_EASY_UNTIL, _EASY_FROM = 0.65, 0.25
"""Shares of the steps: all drawings are easy before the second, none after the first. With full rotation, size and
texture from the start, shapes stayed at chance for the six hundred steps that were tried."""
_SMALL_STEPS = 0.75  # of all steps, at first: clips as small as pictures, so that a batch holds many
_SMALL_BATCH, _BATCH = (64, 24), (32, 6)
"""Pictures and moments of clips: two frames, which are one temporal patch, all the tower ever sees at once."""
_SMALL_SIDE, _EASY_SIDE = 112, 84  # in pixels
_SMALL_CLIP_PIXELS = 112 * 112
_FIRST_LENGTH = 0.1  # of embeddings, as a share of what a fresh tower makes: chance scores, not confident nonsense
_LENGTH = 8.0
"""How many times the length of a word's row the embeddings have while training; `weights` takes it off again. At the
rows' own length the scores would need a factor of this size, and every step of AdamW would throw them about by it."""


@dataclass(frozen=True)
class Shown:
    """A picture or clip as a part of a message, and what it shows; a picture has no direction."""

    part: Image | Video
    colour: str
    shape: str
    direction: str | None = None


def see_stage() -> Qwen2_5OmniVisionEncoder:
    """Train the vision tower; stage ``text`` comes first, whose embedding table is the head."""
    visual = build().thinker.model.visual.to(device())
    with torch.no_grad():
        visual.merger.mlp[-1].weight.mul_(_FIRST_LENGTH)
    loss = SeeLoss(visual, finished("text")["embed_tokens.weight"])
    train(FIRST, visual, loss.first)
    train(SECOND, visual, loss.second)
    rng = np.random.default_rng(1)
    for kind, draw, count in (("pictures", picture, 400), ("clips", clip, 60)):
        right = np.concatenate([loss.right([draw(rng, "heldout") for _ in range(10)]) for _ in range(count // 10)])
        logging.getLogger(__name__).info("%.1f %% of %d held-out %s", 100 * right.mean(), count, kind)
    return visual


def weights() -> dict[str, Tensor]:
    """The trained tower's state, with embeddings about as long as the Thinker's own."""
    return as_in_the_thinker(finished("see"))


def as_in_the_thinker(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the tower in the Thinker, of a state of this stage."""
    return {name: value / _LENGTH if name.startswith("merger.mlp.2.") else value for name, value in state.items()}


def as_trained_alone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of this stage that `as_in_the_thinker` makes into these weights."""
    return {name: value * _LENGTH if name.startswith("merger.mlp.2.") else value for name, value in weights.items()}


def picture(
    rng: np.random.Generator, split: Split = "train", *, easy: bool = False, max_side: int = pictures.MAX_SIDE
) -> Shown:
    """Draw a picture."""
    drawn = pictures.draw(rng, split, max_side, easy=easy)
    return Shown(Image(drawn.pixels), drawn.colour, drawn.shape)


def clip(rng: np.random.Generator, split: Split = "train") -> Shown:
    """Draw a clip, whose frames the processor will enlarge to 128 embeddings and more for every two of them."""
    drawn = pictures.clip(rng, split)
    return Shown(Video(drawn.frames, drawn.fps), drawn.colour, drawn.shape, drawn.direction)


def moment(rng: np.random.Generator, *, small: bool, easy: bool) -> Shown:
    """Draw two frames of a clip of the training split: neighbours, or in an easy one those two apart."""
    drawn = pictures.clip(rng, "train", _EASY_SIDE if easy else _SMALL_SIDE if small else pictures.MAX_SIDE, easy=easy)
    first = int(rng.integers(len(drawn.frames) - 1))
    frames = drawn.frames[[first, min(first + 1 + easy, len(drawn.frames) - 1)]]
    video = Video(frames, drawn.fps, max_pixels=_SMALL_CLIP_PIXELS if small else None)
    return Shown(video, drawn.colour, drawn.shape, drawn.direction)


def encode(visual: Qwen2_5OmniVisionEncoder, parts: Sequence[Part]) -> list[Tensor]:
    """Pictures and clips → of each its embeddings ``(N, D)``, in the processor's order, as `visual` makes them."""
    cut = [_cut(part) for part in parts]
    grids = [grid for _, grid in cut]
    patches = torch.from_numpy(np.concatenate([patches for patches, _ in cut])).to(device_of(visual))
    embeddings = _forward(visual, patches, grids)
    return list(embeddings.split([grid.embeddings(front().vision) for grid in grids]))


def _cut(part: Part) -> tuple[NDArray[np.float32], Grid]:
    """The runtime's patches ``(P, 1176)`` of all temporal patches, and their grid."""
    vision = front().vision
    if isinstance(part, Image):
        height, width = part.pixels.shape[:2]
        grid = images.image_grid(height, width, vision, part.max_pixels)
        return images.image_patches(part.pixels, vision, part.max_pixels), grid
    if isinstance(part, Video):
        height, width = part.frames[0].shape[:2]
        grid = images.video_grid(len(part.frames), height, width, vision, part.max_pixels)
        return np.concatenate(list(images.video_patches(part.frames, vision, part.max_pixels))), grid
    raise TypeError(f"{type(part).__name__} is nothing to be seen; give an Image or a Video")


@dataclass(frozen=True)
class _Runs:
    """Patches that attend to one another, by how many they are: one attention for all runs of a length."""

    order: Tensor
    """(P): indices of patches, run after run, runs of one length after another."""
    places: Tensor
    """(P): its inverse."""
    sizes: list[tuple[int, int]]
    """Number of runs and their length."""

    @classmethod
    def of(cls, runs: Sequence[NDArray[np.int64]], device: torch.device) -> _Runs:
        """Collect runs of patches; every patch is in one."""
        by_length: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        for run in runs:
            by_length[len(run)].append(run)
        order = torch.from_numpy(np.concatenate([run for same in by_length.values() for run in same])).to(device)
        return cls(order, torch.argsort(order), [(len(same), length) for length, same in by_length.items()])

    def attend(self, query_key_value: Tensor) -> Tensor:
        """``(P, 3, heads, D)`` → what each patch takes from its run, ``(P, heads · D)``."""
        taken = []
        ordered = query_key_value[self.order].split([count * length for count, length in self.sizes])
        for (count, length), these in zip(self.sizes, ordered, strict=True):
            query, key, value = these.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)  # (runs, heads, length, D)
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            out = scores.softmax(-1) @ value
            taken.append(out.transpose(1, 2).reshape(count * length, -1))
        return torch.cat(taken)[self.places]


@functools.lru_cache(maxsize=1024)
def _layout(h: int, w: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Row and column ``(P, 2)`` of each patch in the processor's order, and the patches of each window."""
    layout = vision_layout(h, w, front().vision)
    positions = np.empty_like(layout.positions)
    positions[layout.patch_order] = layout.positions
    return positions, [layout.patch_order[slots[slots >= 0]] for slots in layout.window_slots]


def _forward(visual: Qwen2_5OmniVisionEncoder, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The reference's forward, faster: patches stay in the processor's order, and runs of a length attend together."""
    positions, frames, windows, start = [], [], [], 0
    for grid in grids:
        places, of_frame = _layout(grid.h, grid.w)
        for _ in range(grid.t):
            positions.append(places)
            frames.append(np.arange(start, start + len(places)))
            windows += [window + start for window in of_frame]
            start += len(places)
    runs = {True: _Runs.of(frames, patches.device), False: _Runs.of(windows, patches.device)}
    hidden = F.linear(patches, visual.patch_embed.proj.weight.flatten(1)).float()
    turn = visual.rotary_pos_emb(hidden, torch.from_numpy(np.concatenate(positions)).to(patches.device))
    for index, block in enumerate(visual.blocks):
        normed = block.norm1(hidden)
        attention = block.attn
        query, key, value = (
            part(normed).unflatten(-1, (attention.num_heads, -1)) for part in (attention.q, attention.k, attention.v)
        )
        turned = _turn(torch.stack([query, key], 1), *turn)
        taken = runs[index in visual.fullatt_block_indexes].attend(torch.cat([turned, value[:, None]], 1))
        hidden = hidden + attention.proj(taken)
        hidden = hidden + block.mlp(block.norm2(hidden))
    embeddings: Tensor = visual.merger(hidden)
    return embeddings.float()


def _turn(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: ``(P, 2, heads, D)`` turned by angles ``(P, D)``."""
    left, right = vectors.float().chunk(2, -1)
    turned = vectors * cosine[:, None, None] + torch.cat([-right, left], -1) * sine[:, None, None]
    return turned.to(vectors.dtype)


class SeeLoss:
    """Cross-entropies of colour, shape and direction, scored by the Thinker's rows for those words."""

    def __init__(self, visual: Qwen2_5OmniVisionEncoder, table: Tensor, *, in_place: bool = False) -> None:
        """`table` (V, D) is the Thinker's; `in_place`: the tower is where it belongs, its embeddings as `weights`."""
        self._visual, self._longer = visual, _LENGTH if in_place else 1.0
        self._colours, self._shapes, self._directions = (
            _apart(table[_word_ids(words)]).to(device_of(visual)) for words in (COLOURS, SHAPES, DIRECTIONS)
        )

    def first(self, step: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch of fresh drawings: easy and small ones at first."""
        done = step / FIRST.steps
        small, hard = done < _SMALL_STEPS, (done - _EASY_FROM) / (_EASY_UNTIL - _EASY_FROM)
        stills, moments = _SMALL_BATCH if small else _BATCH
        easy = [rng.random() >= hard for _ in range(stills)]
        shown = [picture(rng, easy=it, max_side=_EASY_SIDE if it else _SMALL_SIDE) for it in easy]
        shown += [moment(rng, small=small, easy=rng.random() >= hard) for _ in range(moments)]
        return self._losses(shown, stills)

    def second(self, _: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch of drawings as they will be asked about."""
        stills, moments = _SECOND_BATCH
        shown = [picture(rng) for _ in range(stills)]
        shown += [moment(rng, small=False, easy=False) for _ in range(moments)]
        return self._losses(shown, stills)

    def stills(self, count: int, rng: np.random.Generator) -> Losses:
        """The loss of pictures alone, as they will be asked about."""
        shown = [picture(rng) for _ in range(count)]
        pooled, _, _ = self._pooled(shown)
        colour, shape = self._unnamed(pooled, shown)
        return {"loss": colour + shape, "colour": colour.detach(), "shape": shape.detach()}

    def _unnamed(self, pooled: Tensor, shown: Sequence[Shown]) -> tuple[Tensor, Tensor]:
        """Cross-entropies of the colours and the shapes of pictures with the mean embeddings `pooled (N, D)`."""
        colours, shapes = [it.colour for it in shown], [it.shape for it in shown]
        return _missed(pooled, self._colours, colours, COLOURS), _missed(pooled, self._shapes, shapes, SHAPES)

    def _losses(self, shown: Sequence[Shown], stills: int) -> Losses:
        """Of the first `stills` colour and shape, of the others the direction."""
        pooled, _, _ = self._pooled(shown)
        still, moving = pooled[:stills], pooled[stills:]  # what moves is too small for its shape to be asked for
        colour, shape = self._unnamed(still, shown[:stills])
        direction = _missed(moving, self._directions, [str(it.direction) for it in shown[stills:]], DIRECTIONS)
        parts = {"colour": colour.detach(), "shape": shape.detach(), "direction": direction.detach()}
        return {"loss": colour + shape + direction, **parts}

    @torch.no_grad()
    def right(self, shown: Sequence[Shown]) -> NDArray[np.bool_]:
        """``(N)``: whether colour and shape of a picture, or direction of a clip, score highest."""
        pooled, owner, moving = self._pooled(shown)
        answers = []
        for index, it in enumerate(shown):
            if it.direction is not None:
                mine = [row for row in moving if owner[row] == index]
                scores = (pooled[mine] @ self._directions.T).log_softmax(-1).sum(0)
                answers.append(DIRECTIONS[int(scores.argmax())] == it.direction)
                continue
            row = pooled[owner.index(index)]
            colour, shape = int((self._colours @ row).argmax()), int((self._shapes @ row).argmax())
            answers.append((COLOURS[colour], SHAPES[shape]) == (it.colour, it.shape))
        return np.array(answers)

    def _pooled(self, shown: Sequence[Shown]) -> tuple[Tensor, list[int], list[int]]:
        """Mean embedding of every temporal patch ``(T, D)``, whose it is, and which of them have motion in them.

        The last frame of an odd number stands twice in its temporal patch: nothing moves there.
        """
        with precision(self._visual):
            embeddings = encode(self._visual, [it.part for it in shown])
        pooled: list[Tensor] = []
        owner: list[int] = []
        moving: list[int] = []
        for index, (it, mine) in enumerate(zip(shown, embeddings, strict=True)):
            frames = len(it.part.frames) if isinstance(it.part, Video) else 0
            count = max(1, -(-frames // 2))
            moving += range(len(owner), len(owner) + frames // 2)
            owner += [index] * count
            pooled.append(mine.unflatten(0, (count, -1)).mean(1) * self._longer)
        return torch.cat(pooled), owner, moving


def _apart(rows: Tensor) -> Tensor:
    """What tells the rows of a group of words from one another ``(N, D)``, of mean length 1."""
    centred = rows.detach() - rows.detach().mean(0)
    apart: Tensor = centred / centred.norm(dim=-1).mean()
    return apart


def _word_ids(words: Sequence[str]) -> Tensor:
    """Ids of the words as they stand within a sentence."""
    return torch.tensor([tokenizer().encode(f" {word}", add_special_tokens=False).ids for word in words]).squeeze(-1)


def _missed(pooled: Tensor, rows: Tensor, chosen: Sequence[str], words: Sequence[str]) -> Tensor:
    """Cross-entropy of the words that embeddings ``(N, D)`` should name, scored by the words' ``rows``."""
    targets = torch.tensor([words.index(word) for word in chosen])
    return F.cross_entropy(pooled @ rows.T, targets.to(pooled.device))
