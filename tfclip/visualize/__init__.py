"""Pictures of results, as Matplotlib figures (extra ``viz``); nothing is shown here.

Figures are made without pyplot: they need no display and leave no state behind.
``save_figure(figure, "result.png")`` writes one, and so does ``figure.savefig``.
"""

from __future__ import annotations

from tfclip.visualize.attention import attention_overlay
from tfclip.visualize.cards import CARD_STYLE, ranked_cards, write_search_page
from tfclip.visualize.curves import cmc_curves, distance_histogram, roc_curves
from tfclip.visualize.lists import Shown, contact_sheet, draw_search, ranked_list, search_rows
from tfclip.visualize.maps import embedding_map, project
from tfclip.visualize.style import check_matplotlib, save_figure

__all__ = [
    "CARD_STYLE",
    "Shown",
    "attention_overlay",
    "check_matplotlib",
    "cmc_curves",
    "contact_sheet",
    "distance_histogram",
    "draw_search",
    "embedding_map",
    "project",
    "ranked_cards",
    "ranked_list",
    "roc_curves",
    "save_figure",
    "search_rows",
    "write_search_page",
]
