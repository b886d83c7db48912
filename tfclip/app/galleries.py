"""What the app searches in: drawn people, tracklets, a file of embeddings, a gallery."""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfclip.data.embeddings import SUFFIXES, EmbeddingTable
from tfclip.data.readers import read_folder
from tfclip.data.synthetic import SyntheticTracklets
from tfclip.data.tracklets import Tracklet, load_thumbnails
from tfclip.errors import GalleryError, TableError
from tfclip.gallery.journal import INDEX

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

_MANY = 100  # tracklets that take so long to encode that a bar is shown
_MOST_TABLES = 2  # as many models as the app keeps

# Another seed is another world, and no training draws from one this far: nobody here was seen.
_SAMPLE_SEED = 2**32 + 7
_SAMPLE_PEOPLE = 10
_SAMPLE_CAMERAS = 3  # of the gallery; a query comes from one more
_SAMPLE_FRAMES = 12
_SAMPLE_SIZE = (128, 64)


class SearchedGallery(abc.ABC):
    """Tracklets to search in, as embeddings of whichever model is asked for."""

    name: str
    """What the page calls it."""

    @abc.abstractmethod
    def table(self, model: TFCLIP, fingerprint: str) -> EmbeddingTable:
        """Return the embeddings of a model.

        Args:
            model: The encoder.
            fingerprint: ``model_fingerprint`` of it.

        Raises:
            TFCLIPError: The gallery is of another model, or cannot be read.
        """

    def pictures(self, rows: Sequence[int], table: EmbeddingTable) -> list[np.ndarray | None]:
        """Return a picture of each of some rows of ``table``, ``(H, W, 3)``, or None."""
        return load_thumbnails([table.thumbnails[row] for row in rows])


class TrackletGallery(SearchedGallery):
    """Tracklets whose frames are at hand; every model encodes them once, and keeps nothing on disk.

    Args:
        tracklets: At least one.
        name: What the page calls it.
    """

    def __init__(self, tracklets: Sequence[Tracklet], name: str) -> None:
        self.name = name
        self.tracklets = list(tracklets)
        self._tables: OrderedDict[str, EmbeddingTable] = OrderedDict()

    def table(self, model: TFCLIP, fingerprint: str) -> EmbeddingTable:
        """Encode the tracklets, or return what this model made of them before."""
        if fingerprint not in self._tables:
            embeddings = model.encode_sequences(
                [t.open() for t in self.tracklets], progress=len(self.tracklets) > _MANY
            )
            self._tables[fingerprint] = EmbeddingTable.from_tracklets(
                self.tracklets, embeddings, fingerprint=fingerprint
            )
        self._tables.move_to_end(fingerprint)
        while len(self._tables) > _MOST_TABLES:
            self._tables.popitem(last=False)
        return self._tables[fingerprint]

    def pictures(self, rows: Sequence[int], table: EmbeddingTable) -> list[np.ndarray | None]:
        """Return the middle frame of each tracklet."""
        return [middle_frame(self.tracklets[row]) for row in rows]


class DrawnGallery(TrackletGallery):
    """People drawn by code, so that there is something to search before anything is uploaded."""

    def __init__(self) -> None:
        self._people = SyntheticTracklets(
            _SAMPLE_PEOPLE,
            _SAMPLE_CAMERAS,
            tracklets_per_camera=1,
            num_frames=_SAMPLE_FRAMES,
            frame_size=_SAMPLE_SIZE,
            seed=_SAMPLE_SEED,
        )
        super().__init__(list(self._people), f"{len(self._people)} tracklets of drawn people")

    def query(self, person: int) -> Tracklet:
        """Return a tracklet of a person, as a camera sees it whose pictures the gallery lacks.

        Args:
            person: Any number from 0; the people come round again.
        """
        return self._people.draw(person % _SAMPLE_PEOPLE, _SAMPLE_CAMERAS, 0)


class FileGallery(SearchedGallery):
    """A file of embeddings that ``tfclip encode`` wrote.

    Args:
        path: The file.

    Raises:
        TableError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._table = EmbeddingTable.load(path)
        self.name = f"{len(self._table)} tracklets of {path.name}"

    def table(self, model: TFCLIP, fingerprint: str) -> EmbeddingTable:
        """Return the embeddings; whether they are of this model, the search will check."""
        return self._table


class FolderGallery(SearchedGallery):
    """A gallery that ``tfclip gallery`` keeps; what others add to it is found at once.

    Args:
        path: Its folder.

    Raises:
        GalleryError: It is damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        from tfclip.gallery import Gallery

        self._gallery = Gallery.open(path, read_only=True)
        if not len(self._gallery):
            raise GalleryError(f"the gallery in {path} must have at least one entry, got none")
        self.name = f"the gallery {path.name}"

    def table(self, model: TFCLIP, fingerprint: str) -> EmbeddingTable:
        """Return what the gallery holds now; it keeps no pictures."""
        return self._gallery.to_table()


def open_gallery(path: str | Path | None, layout: str = "auto") -> SearchedGallery:
    """Open what is to be searched in.

    Args:
        path: A folder of tracklets, a file of embeddings, or the folder of a gallery; None is the
            gallery of drawn people.
        layout: Of a folder of tracklets, as in ``tfclip.data.read_folder``.

    Raises:
        TableError: There is nothing of these kinds.
        GalleryError: A gallery is damaged or empty.
        ValueError: ``layout`` is not a layout.
    """
    if path is None:
        return DrawnGallery()
    path = Path(path)
    if path.suffix in SUFFIXES:
        return FileGallery(path)
    if (path / INDEX).exists():
        return FolderGallery(path)
    if not path.is_dir():
        raise TableError(
            f"cannot read {path}: the gallery must be a folder of tracklets, a file of embeddings "
            f"({', '.join(SUFFIXES)}) or the folder of a gallery"
        )
    tracklets = read_folder(path, layout)
    return TrackletGallery(tracklets, f"{len(tracklets)} tracklets of {path.name}")


def middle_frame(tracklet: Tracklet) -> np.ndarray:
    """Return the frame in the middle of a tracklet, ``(H, W, 3)``."""
    frames = tracklet.open()
    (frame,) = frames.select([len(frames) // 2])
    return frame
