"""What is in a drawn scene: shapes in a 3×3 grid of cells, perhaps a word or a number, and a ground.

Notable choices:
- a scene is a pure function of (seed, index), so data needs no files, and training and test seeds cannot overlap;
- things stand in grid cells with a little jitter: "left of" and "top right" are then never a matter of opinion;
- a wide scene has two rows only and is 256×171: the image rule pads it with black, as it does with photos.
It knows neither pixels (`drawing`) nor questions (`questions`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SIZES = ("small", "big")
GROUNDS = ("plain", "gradient", "stripes", "checks", "noise")
WORDS = (
    "cat", "dog", "sun", "moon", "tree", "fish", "bird", "cake", "milk", "tea", "book", "door",
    "lamp", "rain", "snow", "ship", "car", "bus", "hat", "key", "egg", "fox", "bee", "owl",
)  # fmt: skip
TRAIN_SEED, TEST_SEED, EXAMPLE_SEED = 1, 2, 3  # scenes of one seed are never scenes of another
COLUMNS = 3


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, colour and size, its cell (row, column), and where in the picture it is (units of 256)."""

    kind: str
    colour: str
    size: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    angle: float  # degrees
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The shape as a caption names it: "red star"."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Text:
    """A word or a number across two neighbouring cells of one row."""

    text: str
    row: int
    column: int  # the left one of the two
    x: float
    y: float
    height: float  # font size, units of 256
    dark: bool

    @property
    def is_number(self) -> bool:
        """Whether it is digits."""
        return self.text.isdigit()


@dataclass(frozen=True)
class Ground:
    """What stands behind everything: a pattern of two muted colours."""

    kind: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    period: float  # of stripes and checks, units of 256
    angle: float  # radians
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """Everything that is in one picture; 256 wide, `height` 256 or 171."""

    height: int
    ground: Ground
    shapes: tuple[Shape, ...]
    text: Text | None

    @property
    def rows(self) -> int:
        """Rows of cells: 3, or 2 in a wide picture."""
        return 3 if self.height == 256 else 2


BASE = {
    "red": (210, 30, 35), "green": (35, 150, 55), "blue": (35, 70, 205), "yellow": (245, 220, 40),
    "orange": (245, 130, 20), "purple": (130, 45, 160), "white": (250, 250, 250), "black": (12, 12, 12),
}  # fmt: skip


def scene(seed: int, index: int) -> Scene:
    """Returns scene `index` of `seed`; equal arguments give equal scenes on every machine."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    height = 171 if rng.random() < 0.15 else 256
    rows = 3 if height == 256 else 2
    free = [(row, column) for row in range(rows) for column in range(COLUMNS)]
    text = _text(rng, rows) if rng.random() < 0.7 else None
    if text is not None:
        free = [cell for cell in free if cell not in ((text.row, text.column), (text.row, text.column + 1))]
    count = int(rng.integers(1, 5))
    cells = [free[i] for i in rng.permutation(len(free))[:count]]
    return Scene(height, _ground(rng), tuple(_shape(rng, cell) for cell in cells), text)


def _centre(rng: np.random.Generator, row: int, column: float) -> tuple[float, float]:
    x, y = 256 / 3 * (column + 0.5), 256 / 3 * (row + 0.5)
    return x + float(rng.uniform(-5, 5)), y + float(rng.uniform(-5, 5))


def _shape(rng: np.random.Generator, cell: tuple[int, int]) -> Shape:
    kind, colour = str(rng.choice(SHAPES)), str(rng.choice(COLOURS))
    size = str(rng.choice(SIZES))
    radius = float(rng.uniform(15, 19) if size == "small" else rng.uniform(30, 36))
    x, y = _centre(rng, *cell)
    red, green, blue = (int(np.clip(value + rng.integers(-14, 15), 0, 255)) for value in BASE[colour])
    return Shape(kind, colour, size, *cell, x, y, radius, float(rng.uniform(-12, 12)), (red, green, blue))


def _text(rng: np.random.Generator, rows: int) -> Text:
    text = str(rng.choice(WORDS)) if rng.random() < 0.5 else str(rng.integers(10, 100))
    row, column = int(rng.integers(rows)), int(rng.integers(COLUMNS - 1))
    x, y = _centre(rng, row, column + 0.5)
    return Text(text, row, column, x, y, float(rng.uniform(46, 58)), bool(rng.random() < 0.5))


def _ground(rng: np.random.Generator) -> Ground:
    """Muted colours only: brightness 95 to 190 and little saturation, so that all eight shape colours stand out."""

    def muted() -> tuple[int, int, int]:
        grey = rng.uniform(100, 185)
        red, green, blue = (int(grey + rng.uniform(-22, 22)) for _ in range(3))
        return red, green, blue

    kind, first, second = str(rng.choice(GROUNDS)), muted(), muted()
    period, angle = float(rng.uniform(16, 48)), float(rng.uniform(0, np.pi))
    return Ground(kind, first, second, period, angle, int(rng.integers(2**31)))
