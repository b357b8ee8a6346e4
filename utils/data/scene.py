"""The street scenes of utils/synthetic.py: labelled polygons and how to paint them.

Classes share their colours on purpose: only shape, texture and position distinguish them.
"""

from itertools import pairwise, product
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 2048, 1024
GROUND = 520  # pixels from the horizon down to the ground at scale 1
FAR, NEAR = 0.2, 1.4  # scales at the far end of the street and below the edge of the picture

TONES = {  # RGB; several classes share each tone, so that colour alone does not reveal a class
    "A": (116, 114, 114), "B": (152, 88, 74), "D": (66, 66, 74), "G": (96, 116, 72),
    "I": (104, 124, 154), "P": (184, 184, 180), "S": (174, 152, 112),
}  # fmt: skip
FORMS = {  # weights of wave u, of the perpendicular wave v, of their product, and of 1
    "flat":    (0, 0, 0, 0),
    "stripes": (1, 0, 0, 0),
    "checks":  (0, 0, 1, 0),
    "dots":    (1, 1, 0, -0.6),
    "holes":   (-1, -1, 0, 0.6),
}  # fmt: skip
LABELS = {  # choice of one or two tones; texture: form, period in px, direction of wave u in deg;
    # `outline` at scale 1: of a thing on the ground, x from its middle to the right, y from it up
    "sky":           ("P/I/A",    "flat",      1,  0, "0 0  205 0  205 103  0 103"),
    "building":      ("SD/BD",    "holes",    88,  0, ""),
    "ground":        ("G",        "flat",      1,  0, ""),
    "terrain":       ("GS/AS",    "stripes",  60, 90, ""),
    "sidewalk":      ("AP/IP",    "checks",   72,  0, ""),
    "parking":       ("AS",       "stripes",  60, 30, ""),
    "road":          ("A/D",      "flat",      1,  0, ""),
    "wall":          ("BP",       "stripes",  60, 90, ""),
    "fence":         ("ID",       "stripes",  56,  0, ""),
    "vegetation":    ("GD/ID",    "dots",     52, 45, "-3 0 3 0 3 48 16 47 25 60 24 79 13 94 -12 93"
                                                      " -25 80 -24 61 -15 48 -3 48"),
    "pole":          ("PD",       "stripes",  60, 60, "-3 0 3 0 3 77 -3 77"),
    "polegroup":     ("PD",       "stripes",  60, 60, "-7 0 7 0 7 60 -7 60"),
    "traffic light": ("D",        "flat",      1,  0, "-7 50 7 50 7 82 -7 82"),
    "traffic sign":  ("BP",       "checks",   64, 45, "0 67 12 12"),
    "static":        ("DS",       "dots",     30,  0, "-7 0 7 0 7 18 -7 18"),
    "dynamic":       ("IS",       "holes",    30,  0, "-9 0 9 0 9 15 -9 15"),
    "person":        ("PG",       "stripes",  52,  0, "-5 0 5 0 5 18 9 20 7 36 4 38 4 44"
                                                      " -4 44 -4 38 -7 36 -9 20 -5 18"),
    "persongroup":   ("PG",       "stripes",  52,  0, "-20 0 20 0 20 38 8 44 0 39 -10 44"),
    "rider":         ("IP",       "stripes",  48, 90, "-5 12 4 12 10 30 9 35 6 37 7 48 0 48 -9 30"),
    "car":           ("B/I/S",    "flat",      1,  0, "-28 0 28 0 28 16 17 19 9 32 -12 32 -22 18"),
    "cargroup":      ("B/I/S",    "flat",      1,  0, "-48 0 48 0 48 16 30 31 -35 30 -48 16"),
    "license plate": ("P",        "flat",      1,  0, "-3 10 3 10 3 12 -3 12"),
    "truck":         ("SI",       "stripes", 100,  0, "-36 0 36 0 36 28 30 46 16 46 16 62 -36 62"),
    "bus":           ("SB",       "checks",  100,  0, "-38 0 38 0 38 55 34 60 -34 60 -38 55"),
    "train":         ("BG",       "stripes",  76, 45, "-43 0 43 0 43 18 33 58 -43 58"),
    "motorcycle":    ("DP",       "checks",   52, 45, "-18 0 18 0 18 11 12 25 5 25 4 16 -18 20"),
    "bicycle":       ("GP",       "holes",    56, 45, "-15 0 15 0 17 8 9 25 5 18 -7 18 -14 23"),
    "ego vehicle":   ("D",        "flat",      1,  0, "102 103 80 8"),
    "out of roi":    ("D",        "flat",      1,  0, "0 0  205 0  205 .5  0 .5"),
    "rectification border": ("D", "flat",      1,  0, "0 0  .5 0  .5 103  0 103"),
}  # fmt: skip
DETAILS = {  # tone and outline of unlabelled parts that are painted inside a thing
    "car":           [("I", "-15 20 -2 20 -2 29 -10 29"), ("I", "0 20 13 20 8 29 0 29"),
                      ("D", "-17 7 6 6"), ("D", "17 7 6 6")],
    "truck":         [("I", "19 28 28 28 26 43 19 43"), ("D", "-23 9 6 6"), ("D", "24 9 6 6")],
    "bus":           [("I", "-35 36 -2 36 -2 52 -33 52"), ("I", "2 36 35 36 33 52 2 52"),
                      ("D", "-23 9 6 6"), ("D", "24 9 6 6")],
    "train":         [("I", "-39 35 -4 35 -4 50 -39 50"), ("I", "4 35 27 35 27 50 4 50")],
    "motorcycle":    [("D", "-10 7 6 5"), ("D", "11 7 6 5")],
    "bicycle":       [("D", "-9 7 4 5"), ("D", "9 7 4 5")],
    "person":        [("S", "-3 39 3 39 3 43 -3 43"), ("D", "-.5 1 .5 1 .5 15 -.5 15")],
    "rider":         [("S", "0 42 5 42 6 47 0 47")],
    "traffic light": [("P", f"0 {y} 4 4") for y in (56, 66, 76)],
}  # fmt: skip
STRIPS = (  # ground strips along the street, wide to narrow: smallest and largest half width
    ("ground", 1400, 1500), ("terrain", 1160, 1200), ("sidewalk", 820, 900), ("parking", 690, 720),
    ("road", 600, 640),
)  # fmt: skip
LANES = (-400, 0, 400)
LINEUP = (  # things, of which scenes take one in turn; distance to the side, () in a lane; scales
    (("cargroup", "persongroup", "polegroup"),       (650, 740), (0.30, 0.40)),
    (("vegetation",),                                (880, 980), (0.40, 0.80)),
    (("truck", "bus", "train"),                      (),         (0.60, 0.80)),
    (("static", "dynamic"),                          (740, 930), (0.50, 0.80)),
    (("pole+traffic sign", "pole+traffic light"),    (650, 780), (0.55, 0.80)),
    (("car+license plate",),                         (),         (0.70, 0.90)),
    (("person",),                                    (740, 930), (0.65, 0.95)),
    (("motorcycle", "bicycle"),                      (680, 760), (0.65, 0.85)),
    (("bicycle+rider", "motorcycle+rider"),          (),         (0.80, 0.95)),
    (("pole+traffic light", "pole+traffic sign"),    (780, 930), (0.75, 0.90)),
)  # fmt: skip


def outline(numbers: str) -> np.ndarray:
    """Polygon "x y x y ..." or ellipse "x y rx ry" in tens of px -> (n,2) px."""
    values = 10 * np.array(numbers.split(), float)
    if len(values) > 4:
        return values.reshape(-1, 2)
    angle = 2 * np.pi * np.arange(20) / 20
    return values[:2] + values[2:] * np.stack([np.cos(angle), np.sin(angle)], 1)


class Shape(NamedTuple):
    label: str  # "" for an unlabelled detail of the previous shape
    polygon: list[tuple[int, int]]  # (x, y) in pixels
    colors: np.ndarray  # (2,3) RGB


class Scene:
    """Shapes seen by a camera that looks along a street; scale 1 is near, 0 the vanishing point."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.eye = np.array([WIDTH / 2, 420]) + rng.uniform(-40, 40, 2)
        self.shapes: list[Shape] = []

    def draw(self, label: str, points: np.ndarray, tones: str = "") -> None:
        """Add a polygon of (n,2) pixels (x, y), in one or two tones, by default the label's."""
        pair = str(self.rng.choice((tones or LABELS[label][0]).split("/")))
        shift = self.rng.uniform(-16, 16) + self.rng.uniform(-9, 9, 3)
        colors = np.array([TONES[pair[0]], TONES[pair[-1]]]) + shift
        polygon = [(int(x), int(y)) for x, y in np.rint(points)]
        self.shapes.append(Shape(label, polygon, colors))

    def project(self, points: np.ndarray, scale: Any) -> np.ndarray:
        """(n,2) px at scale 1, x right and y up from the middle of the street -> (n,2) pixels."""
        return self.eye + (points * (1, -1) + (0, GROUND)) * np.reshape(scale, (-1, 1))

    def plane(self, label: str, line: tuple, far: float, near: float, tones: str = "") -> None:
        """Draw the area that the line (right, up, right, up) sweeps along the street."""
        corners = np.reshape(line, (2, 2))[[0, 1, 1, 0]]
        self.draw(label, self.project(corners, [far, far, near, near]), tones)

    def stand(self, label: str, x: float, scale: float, size: tuple[float, float]) -> None:
        """Put a thing on the ground; a negative width mirrors it."""
        details = [("", *detail) for detail in DETAILS.get(label, ())]
        for name, tone, numbers in [(label, "", LABELS[label][-1]), *details]:
            self.draw(name, self.project(outline(numbers) * size + (x, 0), scale), tone)


def draw_street(scene: Scene) -> None:
    """Draw everything behind the road users."""
    rng = scene.rng
    scene.draw("sky", outline(LABELS["sky"][-1]))
    scene.draw("vegetation", scene.project(outline("-150 0 150 0 150 90 -150 90"), FAR))
    for label, low, high in STRIPS:
        left, right = rng.uniform(low, high, 2)
        scene.plane(label, (-left, 0, right, 0), FAR, NEAR)
    for x, far in product((-208, 192), np.geomspace(FAR, 1, 8)):
        scene.plane("", (x, 0, x + 16, 0), far, far * 1.1, "P")
    for side, barrier in zip((-1, 1), rng.permutation(["wall", "fence"]).tolist(), strict=True):
        x = side * rng.uniform(1190, 1270)
        for far, near in pairwise(FAR * np.array([1, 1.5, 2.3, 3.5, 6])):
            scene.plane("building", (x, 0, x, rng.uniform(1000, 1900)), far, near)
        x = side * rng.uniform(1070, 1130)
        scene.plane(barrier, (x, 0, x, rng.uniform(240, 320)), rng.uniform(0.3, 0.5), 1.1)


def compose(rng: Generator, index: int) -> list[Shape]:
    """The shapes of scene number `index`, far to near; the line-up repeats after six scenes."""
    scene = Scene(rng)
    draw_street(scene)
    lanes, things = list(rng.permutation(LANES)), []
    for names, aside, scales in LINEUP:
        for side in (-1, 1) if aside else (0,):
            x = side * rng.uniform(*aside) if aside else lanes.pop() + rng.uniform(-40, 40)
            things.append((rng.uniform(*scales), x, names[index % len(names)]))
    for scale, x, names in sorted(things):
        grow = rng.uniform(0.9, 1.1)
        size = (grow * rng.choice((-1, 1)), grow)
        for label in names.split("+"):
            scene.stand(label, x, scale, size)
    for label in ("ego vehicle", "out of roi", "rectification border"):
        scene.draw(label, outline(LABELS[label][-1]))
    return scene.shapes


def index_map(shapes: list[Shape]) -> np.ndarray:
    """(H,W) uint8: the number of the shape that is visible at each pixel."""
    image = Image.new("L", (WIDTH, HEIGHT))
    drawer = ImageDraw.Draw(image)
    for number, shape in enumerate(shapes):
        drawer.polygon(shape.polygon, fill=number)
    return np.asarray(image)


def paint(rng: Generator, shapes: list[Shape]) -> np.ndarray:
    """(H,W,3) uint8 RGB: colours, textures, light and sensor noise.

    The waves u and v mix two tones to a texture. Tables indexed by shape number paint all at once.
    """
    index = index_map(shapes)
    plain = LABELS["road"]  # texture of details
    styles = [LABELS.get(shape.label, plain)[1:4] for shape in shapes]
    forms, periods, directions = zip(*styles, strict=True)
    angle = np.deg2rad(directions)
    pace = 2 * np.pi / (np.array(periods) * rng.uniform(0.9, 1.1, len(shapes)))
    phases = rng.uniform(0, 2 * np.pi, len(shapes))
    weights = np.array([FORMS[form] for form in forms]).T
    rows = [pace * np.cos(angle), pace * np.sin(angle), phases, *weights]
    kx, ky, phase, a, b, c, d = (np.float32(row)[index] for row in rows)
    x, y = np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32)[:, None]
    u, v = np.cos(kx * x + ky * y + phase), np.cos(kx * y - ky * x + phase)
    share = 0.5 + 0.5 * np.clip(3 * (a * u + b * v + c * u * v + d), -1, 1)
    exposure, warm = rng.uniform(0.65, 1.15), rng.uniform(-0.12, 0.12)
    colors = np.float32([shape.colors for shape in shapes]) * exposure * (1 + warm, 1, 1 - warm)
    first, second = np.float32(colors.transpose(1, 0, 2))
    image = second[index] + (first - second)[index] * share[..., None]
    uneven = np.float32(rng.uniform(0.75, 1.2, (4, 7)))
    image *= cv2.resize(uneven, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None]
    noise = rng.standard_normal(index.shape, dtype=np.float32) * np.float32(rng.uniform(3, 6))
    return np.clip(image + noise[..., None], 0, 255).astype(np.uint8)
