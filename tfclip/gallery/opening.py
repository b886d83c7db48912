"""Finding or making a gallery, and refusing one that is not what is wanted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from tfclip.errors import GalleryError
from tfclip.gallery.journal import INDEX, Description, Journal
from tfclip.gallery.query import Storage

if TYPE_CHECKING:
    from torch import nn

StorageName = Literal["exact", "faiss", "milvus"]
IndexName = Literal["flat", "hnsw", "ivf"]


class MilvusOptions(NamedTuple):
    """What of the arguments of ``Gallery.open`` is for Milvus alone."""

    collection: str = "tfclip"
    token: str = ""
    partition: str | None = None
    num_shards: int | None = None
    replica_number: int | None = None


def check_options(uri: str, storage: str, index: str, options: MilvusOptions) -> None:
    """Refuse arguments of ``Gallery.open`` that are out of range or do not fit together.

    Raises:
        TypeError: A number of shards or replicas that is no whole number.
        ValueError: Anything else.
    """
    from tfclip.gallery.partitions import check_partition

    if storage not in get_args(StorageName):
        raise ValueError(f"storage must be one of {get_args(StorageName)}, got {storage!r}")
    if index not in get_args(IndexName):
        raise ValueError(f"index must be one of {get_args(IndexName)}, got {index!r}")
    if not uri:
        raise ValueError("path_or_uri must not be empty")
    if storage != "milvus" and "://" in uri:
        raise ValueError(f"path_or_uri must be a folder for storage={storage!r}, got {uri!r}")
    for name in ("partition", "num_shards", "replica_number"):
        value = getattr(options, name)
        if value is None:
            continue
        if storage != "milvus":
            raise ValueError(f"{name} is for storage='milvus', got {value!r} with {storage!r}")
        if name == "partition":
            check_partition(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        elif value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def open_folder(
    folder: Path,
    storage: str,
    index: IndexName,
    wanted: dict[str, Any],
    read_only: bool,
    timeout: float,
    verify: bool,
    clock: Callable[[], float],
) -> Storage:
    """Open a gallery in a folder; the arguments are those of ``Gallery.open``."""
    from tfclip.gallery.disk import DiskStorage
    from tfclip.gallery.faiss_storage import FaissStorage, check_faiss

    if storage == "faiss":
        check_faiss()
    if not (folder / INDEX).exists():
        if read_only or not names_something(wanted):
            raise GalleryError(f"there is no gallery in {folder}; dim= or model= makes one")
        Journal.create(folder, Description(**wanted), timeout)
    journal = Journal(folder, read_only=read_only, timeout=timeout, verify=verify)
    opened = (
        FaissStorage(journal, clock, index) if storage == "faiss" else DiskStorage(journal, clock)
    )
    if not read_only:
        opened.tidy()
    return opened


def names_something(wanted: Mapping[str, Any]) -> bool:
    """Tell whether enough is known to make a gallery."""
    return bool(wanted["width"] or wanted["model"] or wanted["fingerprint"])


def wanted_description(
    dim: int | None,
    model: str | nn.Module | None,
    revision: str | None,
    fingerprint: str | None,
    ttl: float | None,
) -> dict[str, Any]:
    """Return the fields of the description that the arguments of ``Gallery.open`` ask for."""
    if model is not None and not isinstance(model, str):
        from tfclip.data.embeddings import model_fingerprint

        module: Any = model
        fingerprint = fingerprint or model_fingerprint(module)
        dim = dim or module.embedding_dim
        model = None
    return {
        "width": dim,
        "model": model or "",
        "revision": revision,
        "fingerprint": fingerprint or "",
        "ttl": ttl,
    }


def model_text(described: Any) -> str:
    """Return how a message names the model of a description or a table."""
    revision = f" at {described.revision}" if described.revision else ""
    name = described.model or "a model without a name"
    return f"{name}{revision} ({described.fingerprint or 'none'})"


def check_ttl(ttl: float | None) -> None:
    """Refuse a time to live that is none.

    Raises:
        ValueError: Not above 0, or not finite.
    """
    if ttl is not None and not 0 < ttl < math.inf:
        raise ValueError(f"ttl must be above 0 and finite, got {ttl}")


def check_wanted(name: str, description: Description, wanted: Mapping[str, Any]) -> None:
    """Refuse to open a gallery as what it is not."""
    given = {key: value for key, value in wanted.items() if value not in (None, "")}
    if given.get("width", description.width) != description.width and description.width:
        raise GalleryError(
            f"{name} has vectors of width {description.width}, not {wanted['width']}"
        )
    names = ("fingerprint",) if "fingerprint" in given else ("model", "revision")
    if any(getattr(description, field) != given[field] for field in names if field in given):
        raise GalleryError(
            f"{name} holds embeddings of {model_text(description)}, not of "
            f"{model_text(dataclasses.replace(description, **given))}"
        )
    if given.get("ttl", description.ttl) != description.ttl:
        kept = "until they are forgotten" if not description.ttl else f"{description.ttl} seconds"
        raise GalleryError(
            f"{name} keeps entries {kept}, not {wanted['ttl']} seconds; set_ttl changes that"
        )


def check_maker(name: str, description: Description, table: Any) -> None:
    """Refuse embeddings of another model than the gallery's; see ``Gallery.check_maker``."""
    if description.fingerprint or table.fingerprint:
        same = description.fingerprint == table.fingerprint
    else:
        same = (description.model, description.revision) == (table.model, table.revision)
    if not same:
        raise GalleryError(
            f"{name} holds embeddings of {model_text(description)}, got those of "
            f"{model_text(table)}; encode both with one model"
        )
