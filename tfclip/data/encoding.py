"""From any source of tracklets to a file of embeddings or a gallery, here or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tfclip.data.embeddings import EmbeddingTable, model_fingerprint
from tfclip.data.readers import read_folder
from tfclip.data.shards import read_shards
from tfclip.data.tables import read_table
from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError
from tfclip.remote import expand_address, is_address

if TYPE_CHECKING:
    from tfclip.cluster import RayCluster
    from tfclip.gallery import Gallery
    from tfclip.model import TFCLIP


def encode_dataset(
    model: TFCLIP,
    source: str | Path | Sequence[str] | Sequence[Tracklet],
    out: str | Path,
    *,
    layout: str = "auto",
    cluster: RayCluster | None = None,
    gallery: Gallery | None = None,
    **options: Any,
) -> EmbeddingTable:
    """Encode a source of tracklets into a file, and from there into a gallery.

    An interrupted job goes on where it was, on whatever cluster or none: what is finished is kept
    beside ``out``, once. The gallery gets all rows in one go when the file is complete; rows whose
    names it has already are left as they are, so that a repeated job adds nothing twice.

    Args:
        model: The encoder.
        source: As ``read_tracklets`` takes it, or tracklets.
        out: The file, ``.safetensors`` or ``.parquet``.
        layout: How folders are named; see ``read_folder``.
        cluster: Where to encode, ``RayCluster(...)``; None is this process.
        gallery: Where the embeddings are added, if anywhere.
        **options: As ``tfclip.jobs.encode_to_file`` takes them: ``sampling``, ``progress``, ...

    Returns:
        The table that was written.

    Raises:
        TableError: The source cannot be read, or as in ``encode_to_file``.
        FrameError: The frames of a tracklet cannot be used; what was finished is kept.
        SaveError: A file cannot be written.
        GalleryError: Another model made the gallery; nothing was encoded.
        MissingExtraError: A package is not installed.
    """
    from tfclip.jobs import encode_to_file

    tracklets = read_tracklets(source, layout)
    if gallery is not None and len(gallery):
        options["fingerprint"] = options.get("fingerprint") or model_fingerprint(model)
        name, revision = options.get("model_name", ""), options.get("revision")
        gallery.check_maker(
            SimpleNamespace(model=name, revision=revision, fingerprint=options["fingerprint"])
        )
    table = encode_to_file(model, tracklets, out, cluster=cluster, **options)
    if gallery is not None:
        new = gallery.lacking(table.names)
        if new:
            gallery.add_table(table.select(new))
    return table


def read_tracklets(
    source: str | Path | Sequence[str] | Sequence[Tracklet], layout: str = "auto"
) -> list[Tracklet]:
    """List the tracklets of a source, without decoding a frame.

    Args:
        source: A folder, a table ``.csv`` or ``.parquet``, or one or several ``.tar`` shards; all
            but a folder may be addresses of object stores (``tfclip.remote``), shards with ``*``.
            A table may have addresses in its column ``path``. Tracklets are given back.
        layout: How folders are named; see ``read_folder``.

    Raises:
        TableError: It is none of these, or cannot be read.
        MissingExtraError: fsspec needs a package for this kind of address, or a ``.parquet`` does.
    """
    if isinstance(source, (str, os.PathLike)):
        suffix = Path(source).suffix.lower()
        if suffix == ".tar":
            return read_shards(expand_address(os.fspath(source), TableError))
        if suffix in (".csv", ".parquet"):
            return read_table(source, remote=True)
        if is_address(source):
            raise TableError(f"{source} must end in .csv, .parquet or .tar")
        return read_folder(source, layout)
    sources = list(source)
    if all(isinstance(one, Tracklet) for one in sources):
        return sources  # type: ignore[return-value]
    if not all(isinstance(one, (str, os.PathLike)) for one in sources):
        raise TypeError("source must be a path, an address, several shards, or tracklets")
    return read_shards(
        shard
        for one in sources
        for shard in expand_address(os.fspath(one), TableError)  # type: ignore[arg-type]
    )
