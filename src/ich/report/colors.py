"""The color of each label in charts."""

from ich.competition.labels import LABELS

# Okabe and Ito's palette for all kinds of color vision (jfly.uni-koeln.de/color, 2008).
COLORS: dict[str, str] = dict(
    zip(LABELS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#000000"), strict=True)
)
