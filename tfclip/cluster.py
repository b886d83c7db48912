"""Encoding on many machines with Ray Data (extra ``ray``), or on this one, embedded.

The groups of a job go to actors that hold the model; their embeddings come back to the process that
started the job, which alone writes. A group is finished when it is on this process's disk, so that
an actor that dies, or a machine, costs the groups it had in hand: Ray gives them to another.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tfclip.data.tracklets import Tracklet
from tfclip.errors import ConfigError, MissingExtraError, TFCLIPError
from tfclip.groups import Encoded, Group, GroupEncoder, num_frames
from tfclip.hub import check_device
from tfclip.remote import is_address

if TYPE_CHECKING:
    from types import ModuleType

    from tfclip.model import TFCLIP

_MAX_BLOCKS = 2000  # that Ray Data keeps an account of
_MAX_TOGETHER = 4  # groups that an actor gets at once: it reads ahead from one to the next
_MIN_TURNS = 8  # of each actor, so that all end at about the same time
_STORE_BYTES = 256 * 2**20  # for embeddings on their way, where Ray runs on this machine alone

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where to encode with Ray, and on how much of it.

    Args:
        address: Of a running cluster, as ``ray.init`` takes it (``"auto"``, ``"ray://host:10001"``);
            None starts Ray on this machine for as long as the job takes.
        actors: Processes that hold the model, at least 1.
        cpus_per_actor: Processor cores, and so torch threads, of each, at least 1.
        device: On what the actors hold the model, such as ``"cuda"``, which this process need not
            have; None is the kind of device that the model is on here.

    Where the model is on GPUs, each actor has one of its own.

    Raises:
        ValueError: A number is less than 1, or torch knows no such device.

    Example:
        >>> RayCluster(actors=2)
        RayCluster(address=None, actors=2, cpus_per_actor=1, device=None)
    """

    address: str | None = None
    actors: int = 1
    cpus_per_actor: int = 1
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "cpus_per_actor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        try:
            torch.device("cpu" if self.device is None else self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be one that torch knows, got {self.device!r}") from error

    def device_of(self, model: TFCLIP) -> str:
        """Return the kind of device that the actors hold a model on, ``"cpu"`` or ``"cuda"``.

        Raises:
            ValueError: The model multiplies 8-bit numbers, and it is another than here.
        """
        here = model.device.type
        device = here if self.device is None else torch.device(self.device).type
        if device != here and model.precision == "int8":
            raise ValueError(f"a model with 8-bit products must stay on a CPU, got {device!r}")
        return device


@dataclass(frozen=True)
class ClusterEncoder:
    """Encode groups as ``GroupEncoder`` does, on a cluster.

    Args:
        encoder: What each actor does.
        cluster: Where.
    """

    encoder: GroupEncoder
    cluster: RayCluster

    def encode(
        self,
        groups: Sequence[Group],
        tracklets: Sequence[Tracklet],
        count: Callable[[int], Any],
    ) -> Generator[Encoded, None, None]:
        """Yield each group as it is finished, in any order: its embeddings and numbers of frames.

        Args:
            groups: Of ``make_groups``.
            tracklets: All of the job; the actors must reach the same files under the same names.
            count: Called with a number of frames whenever so many are done.

        Raises:
            FrameError: Frames cannot be used; some groups were given before.
            ConfigError: An actor has no such device.
            MissingExtraError: Ray is not installed.
        """
        ray = _import_ray()
        if not groups:
            return
        rows = [_pack(unit, tracklets) for unit in self._units(groups, tracklets)]
        started = not ray.is_initialized()
        if started:
            self._start(ray)
        try:
            for row in self._run(ray, rows):
                for group, embeddings, lengths in pickle.loads(row["encoded"]):
                    yield group, torch.from_numpy(embeddings), lengths
                    count(sum(num_frames(tracklets[i]) for i in group))
                if row["error"]:
                    raise pickle.loads(row["error"])
        finally:
            if started:
                ray.shutdown()

    def _units(
        self, groups: Sequence[Group], tracklets: Sequence[Tracklet]
    ) -> Iterator[list[Group]]:
        """Yield what one actor does in one go: a few groups, or all groups of one video."""
        files, recordings = self.encoder.by_source(groups, tracklets)
        fair = len(files) // (_MIN_TURNS * self.cluster.actors)
        together = max(1, min(fair, _MAX_TOGETHER))
        yield from (files[i : i + together] for i in range(0, len(files), together))
        yield from recordings.values()

    def _start(self, ray: ModuleType) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.cluster.address is not None:
            _logger.info("joining the Ray cluster %s", self.cluster.address)
            ray.init(address=self.cluster.address, **quiet)
            return
        _logger.info("starting Ray with %d actors", self.cluster.actors)
        ray.init(
            num_cpus=self.cluster.actors * self.cluster.cpus_per_actor,
            object_store_memory=_STORE_BYTES + self._model_bytes(),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )

    def _model_bytes(self) -> int:
        tensors = self.encoder.model.state_dict().values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _run(self, ray: ModuleType, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield what the actors give back, as it comes; Ray Data holds the flow in bounds."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        device, here = self.cluster.device_of(self.encoder.model), self.encoder.model.device
        model = self.encoder.model.cpu()
        try:
            encoder = ray.put(dataclasses.replace(self.encoder, model=model))
        finally:
            model.to(here)
        encoded = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)).map(
            _Actor,
            fn_constructor_args=(encoder, device, self.cluster.cpus_per_actor),
            concurrency=self.cluster.actors,
            num_cpus=self.cluster.cpus_per_actor,
            num_gpus=1 if device == "cuda" else None,
        )
        return encoded.iter_rows()


class _Actor:
    """What runs in each process of Ray: the model, made once."""

    def __init__(self, reference: Any, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        encoder: GroupEncoder = _import_ray().get(reference)  # sent once to each machine
        self._refusal = b""
        try:
            check_device(device)
        except ValueError as error:
            self._refusal = pickle.dumps(ConfigError(f"an actor of the cluster: {error}"))
            return
        self._encoder = dataclasses.replace(encoder, model=encoder.model.to(device))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._refusal:
            return {"encoded": pickle.dumps([]), "error": self._refusal}
        groups, tracklets = pickle.loads(row["work"])
        encoded, failure = [], b""
        try:
            for group, embeddings, lengths in self._encoder.encode(groups, tracklets, _ignore):
                encoded.append((group, embeddings.numpy(), lengths))
        except (TFCLIPError, ValueError, TypeError) as error:  # ours to tell, not Ray's
            failure = pickle.dumps(error)
        return {"encoded": pickle.dumps(encoded), "error": failure}


def _pack(unit: list[Group], tracklets: Sequence[Tracklet]) -> dict[str, Any]:
    """Return what an actor needs for some groups: their tracklets by row, with whole paths."""
    members = {row: _anywhere(tracklets[row]) for group in unit for row in group}
    return {"work": pickle.dumps((unit, members))}


def _anywhere(tracklet: Tracklet) -> Tracklet:
    frames: Any = tracklet.frames
    if isinstance(frames, (list, tuple)):
        return dataclasses.replace(tracklet, frames=tuple(map(_whole_path, frames)))
    return dataclasses.replace(tracklet, frames=_whole_path(frames))


def _whole_path(path: Any) -> str:
    return path if is_address(path) else os.path.abspath(path)  # noqa: PTH100


def _ignore(_: int) -> None:
    """Count nothing: the process that started the job does."""


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError(
            "encoding on a cluster needs Ray; install it with: pip install 'tfclip[ray]'"
        ) from error
    return ray
