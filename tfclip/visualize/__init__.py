"""Pictures of results, as Matplotlib figures (extra ``viz``); nothing is shown here.

Figures are made without pyplot: they need no display and leave no state behind.
``save_figure(figure, "result.png")`` writes one, and so does ``figure.savefig``.
"""

from __future__ import annotations

from tfclip.visualize.curves import cmc_curves, distance_histogram
from tfclip.visualize.lists import Shown, contact_sheet, draw_search, ranked_list
from tfclip.visualize.style import check_matplotlib, save_figure

__all__ = [
    "Shown",
    "check_matplotlib",
    "cmc_curves",
    "contact_sheet",
    "distance_histogram",
    "draw_search",
    "ranked_list",
    "save_figure",
]
