"""What happens when somebody asks: models are loaded, tracklets encoded, neighbours found."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tfclip.app.galleries import SearchedGallery, middle_frame
from tfclip.data.embeddings import EmbeddingTable, model_fingerprint
from tfclip.data.search import search_table
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import Sampling
from tfclip.temporal_attention import look_at, spread
from tfclip.visualize import Shown, attention_overlay, contact_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tfclip.model import TFCLIP

_MOST_MODELS = 2
_SHEET_FRAMES = 8


class Answer(NamedTuple):
    """What the page shows of a search."""

    query: Shown
    results: list[Shown]
    """Nearest first."""
    facts: str
    """What was searched with what, in one sentence."""
    looked_at: Figure | None
    """None where the model has no temporal memory."""


class _Loaded(NamedTuple):
    model: TFCLIP
    fingerprint: str


class Desk:
    """Answers searches, one at a time; at most two models are held at once.

    Args:
        models: Names or folders that may be asked for, at least one; the first is the default.
        gallery: What is searched in.
        any_model: Load whatever else is named, which may be downloaded. Wrong where strangers ask.
        device: Where models run; None is the CPU.

    Raises:
        ValueError: There is no model.
    """

    def __init__(
        self,
        models: Sequence[str],
        gallery: SearchedGallery,
        *,
        any_model: bool = False,
        device: str | None = None,
    ) -> None:
        if not models:
            raise ValueError("models must be at least one, got none")
        self.models = tuple(dict.fromkeys(models))
        self.gallery = gallery
        self.any_model = any_model
        self.device = device
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.RLock()

    def load(self, name: str) -> _Loaded:
        """Return a model and its fingerprint; those asked for last are held.

        Raises:
            ValueError: It is not one of those that may be asked for.
            TFCLIPError: It cannot be loaded.
        """
        if name not in self.models and not self.any_model:
            raise ValueError(f"the model must be one of {', '.join(self.models)}, got {name!r}")
        with self._lock:
            if name not in self._loaded:
                from tfclip.model import TFCLIP

                model = TFCLIP.from_pretrained(name, device=self.device)
                self._loaded[name] = _Loaded(model, model_fingerprint(model))
            self._loaded.move_to_end(name)
            while len(self._loaded) > _MOST_MODELS:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def search(
        self,
        tracklet: Tracklet,
        model: str | None = None,
        *,
        top: int = 8,
        sampling: Sampling = "dense",
    ) -> Answer:
        """Find the nearest tracklets of the gallery, and what the model looked at.

        Args:
            tracklet: What to look for.
            model: One of ``models``; None is the first.
            top: Results, at least 1; fewer where the gallery has no more.
            sampling: As in ``TFCLIP.encode_sequence``.

        Raises:
            TFCLIPError: The frames cannot be used, the model cannot be loaded, or the gallery is
                of another model.
            ValueError: ``top`` is less than 1, or the model may not be asked for.
        """
        name = model or self.models[0]
        with self._lock:
            encoder, fingerprint = self.load(name)
            frames = tracklet.open()
            embedding = encoder.encode_sequence(frames, sampling=sampling)
            table = self.gallery.table(encoder, fingerprint)
            asked = EmbeddingTable(
                embeddings=embedding[None], names=("query",), model=name, fingerprint=fingerprint
            )
            (found,) = search_table(asked, table, top=top, exclude_same_name=False)
            pictures = self.gallery.pictures([row for row, _ in found], table)
            looked_at = None
            if encoder.config.temporal_head == "tmd":
                looked_at = attention_overlay(look_at(encoder, frames))
        results = [
            Shown(
                picture=picture,
                person=table.persons[row],
                camera=table.cameras[row],
                distance=distance,
                label=table.names[row],
            )
            for (row, distance), picture in zip(found, pictures, strict=True)
        ]
        query = Shown(
            picture=middle_frame(tracklet),
            person=tracklet.person,
            camera=tracklet.camera,
            label=tracklet.name,
        )
        calibration = encoder.calibration
        near = f"; {calibration.threshold:.3f} is the model's threshold" if calibration else ""
        facts = (
            f"Searched {self.gallery.name} with {name}. Distances are squared Euclidean between "
            f"vectors of length 1, from 0 to 4; smaller is nearer{near}."
        )
        return Answer(query, results, facts, looked_at)


def draw_sheet(tracklet: Tracklet) -> Figure:
    """Draw some evenly spread frames of a tracklet as a contact sheet.

    Raises:
        FrameError: The frames cannot be used.
    """
    frames = tracklet.open()
    places = spread(len(frames), _SHEET_FRAMES)
    pictures = list(frames.select(places))
    labels = [f"frame {place + 1}" for place in places]
    title = f"{tracklet.name}: {len(frames)} frame{'s' * (len(frames) != 1)}"
    return contact_sheet(pictures, columns=_SHEET_FRAMES, title=title, labels=labels)
