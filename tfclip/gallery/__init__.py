"""A gallery that grows: embeddings added, searched and forgotten, safe on disk at every moment."""

from __future__ import annotations

from tfclip.gallery.conditions import Between
from tfclip.gallery.entries import Entries
from tfclip.gallery.gallery import Gallery
from tfclip.gallery.query import Match, SearchResult
from tfclip.gallery.tables import Imported

__all__ = ["Between", "Entries", "Gallery", "Imported", "Match", "SearchResult"]
