"""The shown details of a product: necks, collars, closures, pockets, waists, straps and toes.

Details are cream or dark with an edge, whatever the cloth, so that they stand out from every colour
and pattern. What is not shown is either simply not drawn or, where cloth must end somewhere (the
sleeves and the hem), covered by a plain card.
"""

from moemoe_jax.data.catalogue.figures import Figure, Pen, both_sides, mirrored

CREAM = (250, 243, 224)
DARK = (38, 30, 34)
GOLD = (214, 164, 40)
TEAL = (24, 168, 166)
BROWN = (140, 88, 40)
CARD = (206, 186, 156)
CARD_EDGE = (150, 128, 98)


def draw_details(pen: Pen, figure: Figure, shown: dict[str, str], skin) -> None:
    """Draws every shown detail of the product but its colour, pattern, sleeves and hem."""
    _mark(pen, figure)
    for attribute, draw in (
        ("neck style", _neck),
        ("collar style", _collar),
        ("closure type", _closure),
        ("pocket description", _pocket),
        ("waist style", _waist),
        ("strap type", _strap),
        ("toe style", _toe),
    ):
        if attribute in shown:
            draw(pen, shown[attribute], figure, skin)


def draw_covers(pen: Pen, figure: Figure, asked: tuple[str, ...], shown: dict[str, str]) -> None:
    """Covers the sleeves and the hem where they are asked and not shown."""
    if "sleeve type" in asked and "sleeve type" not in shown:
        _card(pen, 2, 7, 18, 44)
        _card(pen, 46, 7, 62, 44)
    if "item length description" in asked and "item length description" not in shown:
        _card(pen, 9, 36, 55, 63)


def _card(pen: Pen, x0, y0, x1, y1) -> None:
    pen.box(x0, y0, x1, y1, CARD, outline=CARD_EDGE)
    pen.line([(x0 + 3, y0 + 3), (x1 - 3, y1 - 3)], CARD_EDGE, 1)
    pen.line([(x0 + 3, y1 - 3), (x1 - 3, y0 + 3)], CARD_EDGE, 1)


def _neck(pen: Pen, value: str, figure: Figure, skin) -> None:
    if value == "turtle neck":  # a tube of ribbed knit up to the chin
        pen.box(25, -2, 39, 10, CREAM, outline=DARK)
        for x in (28.5, 32, 35.5):
            pen.line([(x, -1), (x, 9)], DARK, 1)
        return
    edge = {
        "v neck": [(24, 5), (32, 25), (40, 5)],
        "round neck": [(24, 5), (24.6, 9), (27, 12.5), (32, 14), (37, 12.5), (39.4, 9), (40, 5)],
        "square neck": [(23.5, 5), (23.5, 18), (40.5, 18), (40.5, 5)],
        "boat neck": [(17, 6.5), (23, 11), (41, 11), (47, 6.5)],
    }[value]
    pen.polygon(edge, DARK)  # the inside of the back
    pen.box(28.5, 0, 35.5, 9, skin)
    pen.line(edge, CREAM, 2)


def _collar(pen: Pen, value: str, figure: Figure, skin) -> None:
    if value == "spread collar":
        both_sides(pen, [(31.5, 7), (26, 3), (20, 12), (25, 17)], CREAM, DARK)
    elif value == "mandarin collar":
        pen.box(25.5, 2, 38.5, 9, CREAM, outline=DARK)
        pen.line([(32, 2), (32, 9)], DARK, 1.5)
    elif value == "peter pan collar":
        pen.oval(18.5, 5, 32, 16.5, CREAM, outline=DARK)
        pen.oval(32, 5, 45.5, 16.5, CREAM, outline=DARK)
    elif value == "shawl collar":
        pen.polygon([(27, 3), (37, 3), (32, 20)], skin)
        both_sides(pen, [(27, 2), (21.5, 6), (24, 15), (32, 25), (32, 19.5)], CREAM, DARK)
    else:  # ruffle collar
        for x in (20, 26, 32, 38, 44):
            pen.oval(x - 3.6, 3.5, x + 3.6, 12, TEAL, outline=DARK)


def _closure(pen: Pen, value: str, figure: Figure, skin) -> None:
    # Rows 13 to 31, between the collar and the pockets.
    if value == "button":
        for y in (17.5, 27.5):
            pen.oval(27.5, y - 4.5, 36.5, y + 4.5, CREAM, outline=DARK)
            pen.oval(31, y - 1, 33, y + 1, DARK)
    elif value == "zipper":
        pen.box(28.5, 12, 35.5, 33, GOLD, outline=DARK)
        for y in (15, 19, 23, 27):
            pen.box(30, y, 34, y + 1.6, DARK)
    elif value == "lace up":
        pen.box(24.5, 13.5, 39.5, 31.5, CREAM, outline=DARK)
        for y in (14.5, 22.5):
            pen.line([(26, y), (38, y + 8)], DARK, 2)
            pen.line([(38, y), (26, y + 8)], DARK, 2)
    elif value == "toggle":
        for y in (17, 23, 29):
            pen.box(24, y - 1.8, 40, y + 1.8, BROWN, outline=DARK)
    else:  # ribbon tie: a bow with two ends
        both_sides(pen, [(32, 21), (21, 14.5), (21, 27)], TEAL, DARK)
        both_sides(pen, [(32, 21), (26.5, 32), (31, 32)], TEAL, DARK)
        pen.oval(30, 19, 34, 23, DARK)


def _pocket(pen: Pen, value: str, figure: Figure, skin) -> None:
    y = 26.5  # rows 26 to 34 of every family
    if value == "pouch pocket":
        pen.polygon([(26, y), (38, y), (42, y + 5), (42, y + 8), (22, y + 8), (22, y + 5)], CREAM,
                    DARK)  # fmt: skip
    elif value == "zip pocket":
        both_sides(pen, [(20, y + 6), (27, y - 1), (29, y + 1), (22, y + 8.5)], DARK)
        both_sides(pen, [(22, y + 5.5), (26.5, y + 1), (27.3, y + 1.8), (22.8, y + 6.5)], GOLD)
    else:
        both_sides(pen, [(20.5, y), (29, y), (29, y + 8), (20.5, y + 8)], CREAM, DARK)
        if value == "flap pocket":
            both_sides(pen, [(20, y - 0.5), (29.5, y - 0.5), (24.7, y + 5.5)], DARK)


def _waist(pen: Pen, value: str, figure: Figure, skin) -> None:
    y = 25 if figure.family == "top" else 16
    left, right = (20, 44) if figure.family == "top" else (19, 45)
    if value == "elastic waist":
        pen.box(left, y, right, y + 5, CREAM, outline=DARK)
        for x in range(left + 3, right, 3):
            pen.line([(x, y), (x, y + 5)], DARK, 0.9)
    elif value == "belted waist":
        pen.box(left, y, right, y + 5, DARK)
        pen.box(28, y - 1, 36, y + 6, GOLD, outline=DARK)
    elif value == "drawstring waist":
        pen.box(left, y, right, y + 2.5, DARK)
        both_sides(pen, [(32, y + 3), (27, y + 13), (30.5, y + 13)], TEAL, DARK)
        both_sides(pen, [(32, y + 2), (24, y - 2), (24, y + 7)], TEAL, DARK)
    else:  # paperbag waist: a ruffle that stands up above a thin cord
        for x in range(left + 2, right, 5):
            pen.oval(x - 2.6, y - 6, x + 2.6, y + 4, CREAM, outline=DARK)
        pen.box(left, y + 2, right, y + 4.5, DARK)


def _strap(pen: Pen, value: str, figure: Figure, skin) -> None:
    if value == "spaghetti strap":
        for x in (24, 40):
            pen.line([(x, 19), (x, 5)], DARK, 1.4)
    elif value == "wide strap":
        for x in (23.5, 40.5):
            pen.line([(x, 20), (x, 5)], DARK, 6)
    elif value == "halter strap":
        for side in ([(23, 20), (30.5, 3)], mirrored([(23, 20), (30.5, 3)])):
            pen.line(side, DARK, 2.6)
        pen.box(28, 1.5, 36, 4.5, DARK)
    elif value == "cross strap":
        for side in ([(23, 19), (41, 6)], mirrored([(23, 19), (41, 6)])):
            pen.line(side, DARK, 2.6)
    else:  # one shoulder strap
        pen.polygon([(22, 19), (40, 19), (44.5, 6), (38, 5)], DARK)


def _toe(pen: Pen, value: str, figure: Figure, skin) -> None:
    if value == "open toe":
        pen.polygon([(47, 41), (52, 41), (61, 47.5), (60, 58), (54, 61), (47, 61)], skin)
        for y in (47, 51, 55):
            pen.line([(54, y), (60, y)], (150, 96, 70), 1)
        pen.line([(47, 41), (47, 61)], DARK, 1.3)
    elif value == "capped toe":
        pen.polygon([(45, 41), (52, 41), (61, 47.5), (60, 58), (54, 61), (45, 61)], GOLD, DARK)
    elif value == "split toe":
        pen.polygon([(45, 41), (52, 41), (61, 47.5), (60, 58), (54, 61), (45, 61)], TEAL, DARK)
        pen.polygon([(45, 50), (62, 46.5), (62, 53.5)], DARK)
    else:  # five finger toe
        for y in (42.5, 46.5, 50.5, 54.5, 58.5):
            pen.oval(44, y - 2.4, 62, y + 2.4, CREAM, outline=DARK)


def _mark(pen: Pen, figure: Figure) -> None:
    """The small shapes that tell a type from its neighbours; the same on all of its products."""
    if figure.family == "piece":
        _mark_piece(pen, figure.mark)
    elif figure.mark == "drape":
        pen.polygon([(45, 8), (46, 15), (27, 36), (19, 42), (20, 35)], GOLD, DARK)
    elif figure.mark == "rib":
        for x in range(21, 44, 2):
            pen.line([(x, 37), (x, 40)], DARK, 0.7)
    elif figure.mark == "side":
        for side in ([(22.5, 38), (22, 60)], mirrored([(22.5, 38), (22, 60)])):
            pen.line(side, CREAM, 2)
    elif figure.mark == "hood":
        pen.line([(25, 1), (39, 1)], DARK, 1.4)


def _mark_piece(pen: Pen, mark: str) -> None:
    if mark == "belt":
        pen.box(8, 20, 24, 44, GOLD, outline=DARK)
        pen.box(12.5, 26, 19.5, 38, DARK)
        for x in (38, 45, 52):
            pen.oval(x - 1.2, 31, x + 1.2, 33.4, DARK)
    elif mark == "gloves":
        for x in (3, 34):
            pen.box(x + 5, 53, x + 22, 58, DARK)
    elif mark == "hat":
        pen.polygon([(17.5, 35), (46.5, 35), (47, 40), (17, 40)], DARK)
    elif mark == "necktie":
        pen.line([(27, 13), (37, 13)], DARK, 1.4)
    elif mark == "scarf":
        for x in range(15, 30, 3):
            pen.line([(x, 58), (x, 62)], DARK, 1)
        for x in range(37, 52, 3):
            pen.line([(x, 48), (x, 52)], DARK, 1)
