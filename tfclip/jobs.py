"""Encoding many tracklets into one file, so that an interruption costs little.

The tracklets are encoded in groups that depend on nothing but the job. The embeddings of each
finished group are kept in a folder beside the file, under a name that stands for the whole job -
model, settings and every source file - so that a rerun takes up what is there, never what belongs
to another job, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from tfclip import __version__
from tfclip import groups as grouping
from tfclip.ahead import check_workers
from tfclip.cluster import ClusterEncoder, RayCluster
from tfclip.data.embeddings import EmbeddingTable, check_suffix, model_fingerprint
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import BATCH_FRAMES, Sampling
from tfclip.errors import SaveError, TableError
from tfclip.files import check_file
from tfclip.frames import open_frames
from tfclip.groups import Group, GroupEncoder, make_groups, num_frames
from tfclip.reading import Reading
from tfclip.remote import container_of, is_address, stamp_address

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

_logger = logging.getLogger(__name__)


def encode_to_file(
    model: TFCLIP,
    tracklets: Sequence[Tracklet],
    out: str | Path,
    *,
    model_name: str = "",
    revision: str | None = None,
    fingerprint: str | None = None,
    sampling: Sampling = "dense",
    use_cameras: bool = False,
    reading: Reading | None = None,
    batch_frames: int = BATCH_FRAMES,
    workers: int | None = None,
    progress: bool = False,
    cluster: RayCluster | None = None,
) -> EmbeddingTable:
    """Encode tracklets into a file, taking up what an interrupted run of the same job finished.

    Tracklets of one video are encoded in one pass over it (with dense sampling). Boxes that lie
    wholly outside the picture of a video are left out, which is logged.

    Args:
        model: The encoder, in the type and on the device it is to run.
        tracklets: What to encode: frames in files, unique names.
        out: The file, ``.safetensors`` or ``.parquet`` (extra ``table``). Finished groups wait in
            the folder ``OUT.parts`` until all are there.
        model_name: What the file calls the model.
        revision: The model's revision, where it has one.
        fingerprint: ``model_fingerprint`` of the model as it was loaded; None computes it.
        sampling: As in ``TFCLIP.encode_sequence``.
        use_cameras: Tell the model each tracklet's camera. That is right only where they are the
            cameras that it was trained with, in the same order.
        reading: As in ``TFCLIP.encode_sequence``. What differs from the exact way is written into
            the file's settings.
        batch_frames: Frames that go through the tower at once.
        workers: As in ``TFCLIP.encode_sequence``.
        progress: Show a progress bar where the output is a terminal.
        cluster: Where to encode, if not in this process.

    Returns:
        The table that was written, in the order of ``tracklets``.

    Raises:
        TableError: The tracklets cannot be one table, or their cameras do not fit the model.
        FrameError: The frames of a tracklet cannot be used; what was finished is kept.
        SaveError: The file or its parts cannot be written.
        ConfigError: An actor of the cluster has no such device.
        TypeError: Frames are not in files.
        ValueError: ``workers`` is negative, or the model cannot be on the cluster's device.
    """
    out = Path(out)
    check_output(out)
    reading = Reading() if reading is None else reading
    device = model.device.type if cluster is None else cluster.device_of(model)
    workers = check_workers(workers, device)
    tracklets = _without_outside_boxes(tracklets)
    twice = [name for name, count in Counter(t.name for t in tracklets).items() if count > 1]
    if twice:
        raise TableError(f"names of tracklets must be unique, got {twice[0]!r} twice")
    if use_cameras:
        _check_cameras(model, tracklets)
    described = _describe(model, model_name, revision, fingerprint, sampling, use_cameras, reading)
    parts = _Parts(out, _job_key(tracklets, described, batch_frames, device))
    encoder = GroupEncoder(model, sampling, use_cameras, reading, batch_frames, workers)
    groups = make_groups(tracklets, encoder.recording)
    finished = parts.load_all(groups, tracklets)
    if finished:
        count = sum(map(len, finished))
        _logger.info("going on: %d of %d tracklets are finished", count, len(tracklets))
    pending = [group for group in groups if group not in finished]
    engine = encoder if cluster is None else ClusterEncoder(encoder, cluster)
    with (
        tqdm(
            total=sum(map(num_frames, tracklets)),
            initial=sum(num_frames(tracklets[row]) for group in finished for row in group),
            unit="frame",
            disable=None if progress else True,  # None: shown where the output is a terminal
        ) as bar,
        # Closed at once when something goes wrong here, so that no thread goes on reading.
        contextlib.closing(engine.encode(pending, tracklets, bar.update)) as encoded,
    ):
        for group, embeddings, lengths in encoded:
            members = [tracklets[row] for row in group]
            table = EmbeddingTable.from_tracklets(members, embeddings, lengths, **described)
            parts.save(group, table)
            finished[group] = table
    table = _in_order(finished)
    table.save(out)
    parts.remove()
    return table


def encode_cached(
    model: TFCLIP,
    tracklets: Sequence[Tracklet],
    folder: str | Path,
    *,
    fingerprint: str | None = None,
    sampling: Sampling = "dense",
    use_cameras: bool = False,
    reading: Reading | None = None,
    batch_frames: int = BATCH_FRAMES,
    workers: int | None = None,
    progress: bool = False,
) -> EmbeddingTable:
    """Encode tracklets, or take what the same job once put into a folder.

    A file of the folder is named by all that its embeddings depend on: the model's weights and
    type, sampling, cameras, the kind of device, the version of tfclip, and name, size and time of
    change of every source file. So nothing has ever to be declared out of date, and any file of it
    may be deleted. An interrupted job goes on as in ``encode_to_file``.

    Args:
        model: The encoder.
        tracklets: What to encode: frames in files, unique names.
        folder: Where the files of embeddings are kept; made when it is missing.
        fingerprint: As in ``encode_to_file``, and so on.
        sampling: As in ``TFCLIP.encode_sequence``.
        use_cameras: Tell the model each tracklet's camera.
        reading: As in ``TFCLIP.encode_sequence``; another way of reading is another file.
        batch_frames: Frames that go through the tower at once.
        workers: As in ``TFCLIP.encode_sequence``.
        progress: Show a progress bar where there is something to encode.

    Returns:
        The embeddings, in the order of ``tracklets``; a tracklet whose boxes lie wholly outside the
        picture has none.

    Raises:
        TableError: As ``encode_to_file``, and so on.
        FrameError: The frames of a tracklet cannot be used.
        SaveError: The folder cannot be written.
        TypeError: Frames are not in files.
    """
    reading = Reading() if reading is None else reading
    fingerprint = fingerprint or model_fingerprint(model)
    # Without the model's name: the same weights in another place give the same embeddings.
    described = _describe(model, "", None, fingerprint, sampling, use_cameras, reading)
    key = _job_key(tracklets, described, batch_frames, model.device.type)
    path = Path(folder, f"{key}.safetensors")
    if path.exists():
        try:
            table = EmbeddingTable.load(path)
            names = {tracklet.name for tracklet in tracklets}
            if not names.issuperset(table.names) or table.fingerprint != fingerprint:
                raise TableError(f"{path} holds embeddings of another job")
            _logger.info("embeddings are taken from %s", path)
            return table
        except TableError as error:
            _logger.warning("encoding again what a damaged file held: %s", error)
    return encode_to_file(
        model,
        tracklets,
        path,
        fingerprint=fingerprint,
        sampling=sampling,
        use_cameras=use_cameras,
        reading=reading,
        batch_frames=batch_frames,
        workers=workers,
        progress=progress,
    )


def _describe(
    model: TFCLIP,
    model_name: str,
    revision: str | None,
    fingerprint: str | None,
    sampling: Sampling,
    use_cameras: bool,
    reading: Reading,
) -> dict[str, Any]:
    """Return the fields of a table that say how its embeddings were made."""
    return {
        "model": model_name,
        "revision": revision,
        "fingerprint": fingerprint or model_fingerprint(model),
        "settings": {
            "sampling": sampling,
            "cameras": use_cameras,
            "dtype": model.precision,
            **({"merged_tokens": merged} if (merged := model.backbone.merged_tokens) else {}),
            "tfclip": __version__,
            **reading.settings(),
        },
    }


def check_output(path: Path) -> None:
    """Refuse, before any work, a file of embeddings that could not be written after it.

    Raises:
        TableError: Its suffix is of no format that a table can have.
        SaveError: It is a folder, or lies where nothing may be written.
        MissingExtraError: Its format needs a package that is not there.
    """
    check_suffix(path)
    check_file(path)


def _in_order(finished: Mapping[Group, EmbeddingTable]) -> EmbeddingTable:
    rows = [row for group in finished for row in group]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return EmbeddingTable.concatenate(list(finished.values())).select(order)


class _Parts:
    """Finished groups of a job, in a folder beside the file they will become."""

    def __init__(self, out: Path, key: str) -> None:
        self.folder = out.with_name(f"{out.name}.parts")
        self.key = key

    def save(self, group: Group, table: EmbeddingTable) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"cannot write {self.folder}: {error.strerror}") from error
        try:
            table.save(self._path(group))
        except SaveError:
            with contextlib.suppress(OSError):  # it holds what is finished
                self.folder.rmdir()
            raise

    def load_all(
        self, groups: Sequence[Group], tracklets: Sequence[Tracklet]
    ) -> dict[Group, EmbeddingTable]:
        """Return what an earlier run of this job finished."""
        finished = {}
        for group in groups:
            path = self._path(group)
            if not path.exists():
                continue
            try:
                table = EmbeddingTable.load(path)
            except TableError as error:
                _logger.warning("encoding a damaged part again: %s", error)
                continue
            if table.names == tuple(tracklets[row].name for row in group):
                finished[group] = table
        return finished

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, group: Group) -> Path:
        return self.folder / f"{self.key}-{group[0]:06d}.safetensors"


def _job_key(
    tracklets: Sequence[Tracklet], described: dict[str, Any], batch_frames: int, device: str
) -> str:
    """Return 16 digits that stand for everything that the result depends on, to the last bit."""
    digest = hashlib.sha256()
    job = {**described, "batch_frames": batch_frames, "device": device}
    job["group"] = grouping.GROUP_FRAMES
    digest.update(json.dumps(job, sort_keys=True).encode())
    stamps: dict[str, Any] = {}
    for tracklet in tracklets:
        fields = dataclasses.asdict(tracklet)
        paths = _paths(tracklet)
        # A video or folder may be shared by many tracklets; of single files there may be millions.
        known = stamps if len(paths) == 1 else {}
        fields["frames"] = [(path, _stamp(path, known)) for path in paths]
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _paths(tracklet: Tracklet) -> list[str]:
    frames = tracklet.frames
    paths: Iterable[Any] = frames if isinstance(frames, (list, tuple)) else [frames]
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"frames of {tracklet.name!r} must be in files, got {type(path).__name__}; "
                "encode_sequences takes what is in memory"
            )
    return [os.fspath(path) for path in paths]


def _stamp(path: str, known: dict[str, Any]) -> list[Any]:
    """Return what changes when a file, or a folder of frames, does."""
    if is_address(path):
        container = container_of(path)
        if container not in known:
            known[container] = stamp_address(container, TableError)
        return known[container]
    if path not in known:
        try:
            files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
            stats = [(file.name, file.stat()) for file in files]
            known[path] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        except OSError as error:
            raise TableError(f"cannot read {path}: {error.strerror}") from error
    return known[path]


def _check_cameras(model: TFCLIP, tracklets: Sequence[Tracklet]) -> None:
    count = model.config.num_cameras
    for tracklet in tracklets:
        camera = tracklet.camera
        if camera is not None and camera >= count:
            knows = f"knows cameras 0 to {count - 1}" if count else "has no camera table"
            raise TableError(f"tracklet {tracklet.name!r} is of camera {camera}; the model {knows}")


def _without_outside_boxes(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    """Leave out the boxes that no pixel of their video lies in, as trackers predict them."""
    sizes: dict[str, tuple[int, int]] = {}
    kept, total, dropped = [], 0, 0
    for tracklet in tracklets:
        indices, boxes = tracklet.frame_indices, tracklet.boxes
        if indices is None or boxes is None:
            kept.append(tracklet)
            continue
        recording = str(tracklet.frames)
        if recording not in sizes:
            height, width, _ = next(iter(open_frames(recording))).shape
            sizes[recording] = width, height
        inside = _touches_picture(boxes, *sizes[recording])
        total += len(boxes)
        dropped += len(boxes) - len(inside)
        if inside:
            frames = tuple(indices[i] for i in inside)
            rest = tuple(boxes[i] for i in inside)
            kept.append(dataclasses.replace(tracklet, frame_indices=frames, boxes=rest))
    if dropped:
        lost = len(tracklets) - len(kept)
        _logger.warning(
            "%d of %d boxes lie outside the picture and are left out%s",
            dropped,
            total,
            f", and with them {lost} tracklets" if lost else "",
        )
    if not kept:
        raise TableError("no box lies inside the picture" if dropped else "there is no tracklet")
    return kept


def _touches_picture(boxes: Sequence[Any], width: int, height: int) -> list[int]:
    """Return the positions of the boxes of which ``crop_frame`` would find a pixel."""
    corners = np.asarray(boxes, dtype=np.float64)
    low = np.rint(corners[:, :2])
    high = np.rint(corners[:, :2] + corners[:, 2:])
    size = np.array([width, height])
    inside = (np.clip(low, 0, size) < np.clip(high, 0, size)).all(1)
    return np.flatnonzero(inside).tolist()
