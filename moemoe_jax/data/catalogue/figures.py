"""What each product type looks like before any detail: the cloth, and the body in it.

All coordinates are on a 64 x 64 grid, x to the right and y down; `Pen` maps the grid to pixels. The
same feature sits at the same place on all types of a family, which is what lets a small model learn
it from few pictures.
"""

import dataclasses

from PIL import ImageDraw

Point = tuple[float, float]

VEST, EDGE = (252, 252, 252), (90, 90, 110)
CLOTH = 255  # in the mask
# Where the cloth ends; the same rows for tops, skirts and trousers.
HEMS = {"thigh length": 35.0, "knee length": 44.0, "calf length": 52.0, "floor length": 60.5}


class Pen:
    """Draws on a picture of any size in grid coordinates."""

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float, dx: float, dy: float):
        self._draw, self._scale, self._dx, self._dy = draw, scale, dx, dy

    def _map(self, points):
        s, dx, dy = self._scale, self._dx, self._dy
        return [(x * s + dx, y * s + dy) for x, y in points]

    def polygon(self, points, fill, outline=None):
        """A filled shape, with an edge one grid unit wide where `outline` is given."""
        self._draw.polygon(self._map(points), fill=fill)
        if outline is not None:
            self.line([*points, points[0]], outline, 1.0)

    def line(self, points, fill, width):
        """A line of `width` grid units."""
        self._draw.line(
            self._map(points), fill=fill, width=max(1, round(width * self._scale)), joint="curve"
        )

    def box(self, x0, y0, x1, y1, fill, *, outline=None):
        """A rectangle."""
        self._draw.rectangle(
            self._map([(x0, y0), (x1, y1)]), fill, outline, max(1, round(self._scale))
        )

    def oval(self, x0, y0, x1, y1, fill, *, outline=None):
        """An ellipse in a box."""
        self._draw.ellipse(
            self._map([(x0, y0), (x1, y1)]), fill, outline, max(1, round(self._scale))
        )


@dataclasses.dataclass(frozen=True)
class Figure:
    """How a product type is drawn.

    Attributes:
      family: "top" (with arms), "strap" (hangs on straps), "bottom", "foot" or "piece" (anything
        drawn on its own).
      hem: grid row at which the cloth ends where no item length is asked.
      flare: how much wider the hem is than the waist, in grid units on either side.
      legs: width of each trouser leg in grid units; 0 = no legs.
      mark: the name of one more shape that tells the type from its neighbours.
    """

    family: str
    hem: float = 40.0
    flare: float = 0.0
    legs: float = 0.0
    mark: str = ""


FIGURES: dict[str, Figure] = {
    "apparel belt": Figure("piece", mark="belt"),
    "apparel gloves": Figure("piece", mark="gloves"),
    "blazer": Figure("top", hem=41, flare=1),
    "bra": Figure("strap", hem=28, mark="cups"),
    "choli": Figure("top", hem=27),
    "coat": Figure("top", flare=3),
    "dress": Figure("top", flare=9),
    "hat": Figure("piece", mark="hat"),
    "kurta": Figure("top", flare=3),
    "necktie": Figure("piece", mark="necktie"),
    "nightgown nightshirt": Figure("strap", flare=7),
    "overalls": Figure("strap", legs=11, mark="bib"),
    "pajamas": Figure("bottom", legs=14),
    "pants": Figure("bottom", legs=11),
    "saree": Figure("top", hem=60, flare=6, mark="drape"),
    "scarf": Figure("piece", mark="scarf"),
    "shirt": Figure("top", hem=40, mark="tails"),
    "shorts": Figure("bottom", hem=38, legs=14),
    "skirt": Figure("bottom", flare=8),
    "sleepwear": Figure("top", hem=58, legs=12),
    "socks": Figure("foot"),
    "suit": Figure("top", hem=60, legs=10),
    "sweater": Figure("top", hem=40, mark="rib"),
    "sweatshirt": Figure("top", hem=40, mark="hood"),
    "swimwear": Figure("strap", hem=42, mark="brief"),
    "tights": Figure("foot", mark="tights"),
    "track suit": Figure("top", hem=60, legs=11, mark="side"),
    "tunic": Figure("top", flare=5),
    "undergarment slip": Figure("strap", flare=3),
    "underpants": Figure("bottom", hem=36, mark="brief"),
}


def mirrored(points: list[Point]) -> list[Point]:
    """The points flipped to the other side of the body axis, x = 32."""
    return [(64 - x, y) for x, y in points]


def both_sides(pen: Pen, points: list[Point], fill, outline=None) -> None:
    """A shape and its mirror image."""
    pen.polygon(points, fill, outline)
    pen.polygon(mirrored(points), fill, outline)


def draw_body(pen: Pen, figure: Figure, shown: dict[str, str], skin) -> None:
    """The parts of the body that can be seen around the cloth; drawn before it."""
    if figure.family == "top":
        pen.box(28.5, 0, 35.5, 10, skin)
        if "sleeve type" in shown:
            for side in ([(21, 11), (9, 40)], mirrored([(21, 11), (9, 40)])):
                pen.line(side, skin, 5)
                x, y = side[1]
                pen.oval(x - 3, y - 2, x + 3, y + 5, skin)
    if figure.family == "strap":
        pen.box(28.5, 0, 35.5, 7, skin)
        pen.polygon([(28, 5), (36, 5), (46, 9), (44, 24), (20, 24), (18, 9)], skin)
    if "item length description" in shown:
        for x in (26.5, 37.5):
            pen.line([(x, 30), (x, 60)], skin, 5)
            pen.oval(x - 4, 58, x + 4, 63, skin)
    if figure.family == "bottom" and "rise style" in shown:
        # A white vest above bare skin: the lower the cloth sits, the more skin shows.
        vest = {"high rise": 17.0, "mid rise": 9.0, "low rise": 2.0}[shown["rise style"]]
        pen.polygon([(22, 0), (42, 0), (44, 18), (20, 18)], skin)
        if shown["rise style"] == "low rise":
            pen.oval(30.8, 8, 33.2, 12, (110, 70, 50))
        pen.polygon([(22, 0), (42, 0), (42 + vest / 9, vest), (22 - vest / 9, vest)], VEST, EDGE)


def draw_cloth(pen: Pen, figure: Figure, shown: dict[str, str]) -> None:
    """The outline of the cloth as a mask."""
    hem = HEMS.get(shown.get("item length description", ""), figure.hem)
    if figure.family == "top":
        _top(pen, figure, hem)
        _sleeves(pen, shown.get("sleeve type"))
    elif figure.family == "strap":
        _strapped(pen, figure, hem)
    elif figure.family == "bottom":
        _bottom(pen, figure, hem)
    elif figure.family == "foot":
        _foot(pen, figure)
    else:
        _piece(pen, figure.mark)


def _legs(pen: Pen, width: float, top: float, hem: float) -> None:
    both_sides(pen, [(20, top), (32.5, top), (30.5, hem), (30.5 - width, hem)], CLOTH)


def _skirt(pen: Pen, top: float, hem: float, flare: float) -> None:
    # The flare grows with the way down, so that a short and a long hem lie on the same cut.
    reach = flare * (hem - top) / (61 - top) * 1.4
    pen.polygon([(21, top), (43, top), (44 + reach, hem), (20 - reach, hem)], CLOTH)


def _top(pen: Pen, figure: Figure, hem: float) -> None:
    chest = [(27, 5), (37, 5), (46, 9), (44, 20), (43, 27), (21, 27), (20, 20), (18, 9)]
    pen.polygon(chest, CLOTH)
    if figure.legs:
        pen.box(20, 26, 44, 36, CLOTH)
        _legs(pen, figure.legs, 35, hem)
    elif hem > 27:
        _skirt(pen, 26, hem, figure.flare)
    if figure.mark == "hood":
        pen.polygon([(22, 7), (25, 1), (39, 1), (42, 7)], CLOTH)
    if figure.mark == "tails":
        both_sides(pen, [(20, hem - 1), (30, hem - 1), (26, hem + 3), (20, hem + 1)], CLOTH)


def _sleeves(pen: Pen, sleeve: str | None) -> None:
    if sleeve == "short sleeve":
        both_sides(pen, [(22, 8), (17, 9), (9, 23), (17, 27), (22, 18)], CLOTH)
    elif sleeve == "long sleeve":
        both_sides(pen, [(22, 8), (17, 9), (5, 37), (12, 40), (22, 20)], CLOTH)
    elif sleeve == "puff sleeve":
        for x in (13, 51):
            pen.oval(x - 9, 6, x + 9, 25, CLOTH)
    elif sleeve == "bell sleeve":
        both_sides(
            pen, [(22, 8), (17, 9), (12, 22), (0.5, 37), (17, 45), (17, 25), (22, 18)], CLOTH
        )


def _strapped(pen: Pen, figure: Figure, hem: float) -> None:
    if figure.mark == "cups":
        both_sides(pen, [(19, 22), (24, 17), (31.5, 23), (33, 32), (19, 32)], CLOTH)
    elif figure.mark == "bib":
        pen.polygon([(23, 17), (41, 17), (42, 30), (22, 30)], CLOTH)
        pen.box(20, 29, 44, 36, CLOTH)
        _legs(pen, figure.legs, 33, hem)
    elif figure.mark == "brief":
        pen.polygon([(22, 18), (42, 18), (43, 28), (46, 37), (35, 45), (29, 45), (18, 37)], CLOTH)
    else:
        pen.polygon([(22, 18), (42, 18), (43, 27), (21, 27)], CLOTH)
        _skirt(pen, 26, hem, figure.flare)


def _bottom(pen: Pen, figure: Figure, hem: float) -> None:
    if figure.mark == "brief":
        pen.polygon([(20, 16), (44, 16), (47, 27), (36, 38), (28, 38), (17, 27)], CLOTH)
        return
    pen.polygon([(20, 16), (44, 16), (46, 27), (18, 27)], CLOTH)
    if figure.legs:
        pen.polygon([(18, 26), (46, 26), (46, 31), (18, 31)], CLOTH)
        inner = 32 - (hem - 26) / 17  # a gap that widens on the way down
        both_sides(pen, [(18, 26), (32.5, 26), (inner, hem), (inner - figure.legs, hem)], CLOTH)
    else:
        reach = figure.flare * (hem - 26) / 34
        pen.polygon([(18, 26), (46, 26), (46 + reach, hem), (18 - reach, hem)], CLOTH)


def _foot(pen: Pen, figure: Figure) -> None:
    top, width = (1, 8) if figure.mark == "tights" else (12, 11)
    if figure.mark == "tights":
        pen.polygon([(31, 1), (40, 1), (36, 36), (29, 34)], CLOTH)
    pen.polygon(
        [(12, top), (12 + width + 5, top), (12 + width + 3, 38), (52, 42), (60, 48), (59, 57),
         (54, 60), (16, 60), (10, 54), (11, 40)],
        CLOTH,
    )  # fmt: skip


def _piece(pen: Pen, mark: str) -> None:
    if mark == "belt":
        pen.polygon([(1, 24), (56, 24), (63, 32), (56, 40), (1, 40)], CLOTH)
    elif mark == "gloves":
        for x in (3, 34):
            pen.box(x + 5, 28, x + 22, 58, CLOTH)
            for finger, top in enumerate((12, 7, 8, 14)):
                left = x + 5 + finger * 4.5
                pen.box(left, top, left + 3.4, 30, CLOTH)
            pen.polygon([(x + 6, 44), (x - 1, 31), (x + 2, 28), (x + 8, 34)], CLOTH)
    elif mark == "hat":
        pen.polygon([(17, 42), (19, 20), (26, 13), (38, 13), (45, 20), (47, 42)], CLOTH)
        pen.oval(2, 36, 62, 52, CLOTH)
    elif mark == "necktie":
        pen.polygon([(24, 3), (40, 3), (37, 13), (27, 13)], CLOTH)
        pen.polygon([(28, 13), (36, 13), (44, 52), (32, 62), (20, 52)], CLOTH)
    elif mark == "scarf":
        pen.oval(10, 3, 54, 24, CLOTH)
        pen.polygon([(16, 16), (32, 18), (30, 58), (14, 58)], CLOTH)
        pen.polygon([(33, 18), (48, 15), (51, 48), (36, 48)], CLOTH)
