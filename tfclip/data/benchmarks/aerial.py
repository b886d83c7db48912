"""AG-VPReID: people seen by ground cameras, by wearable cameras and by drones."""

from __future__ import annotations

from pathlib import Path

from tfclip.data.benchmarks.folders import read_parts
from tfclip.data.benchmarks.records import Dataset, ProtocolRule

_CASE1, _CASE2 = "case1_aerial_to_ground", "case2_ground_to_aerial"
AG_VPREID_PROTOCOLS = (
    ProtocolRule(
        name="aerial-to-ground",
        query={"part": (f"{_CASE1}/query",)},
        gallery={"part": (f"{_CASE1}/gallery",)},
        description="case 1 of the 2025 challenge: queries from drones",
    ),
    ProtocolRule(
        name="ground-to-aerial",
        query={"part": (f"{_CASE2}/query",)},
        gallery={"part": (f"{_CASE2}/gallery",)},
        description="case 2 of the 2025 challenge: queries from the ground",
    ),
)
_PLATFORMS = {0: "cctv", 1: "cctv", 2: "wearable", 3: "wearable", 4: "aerial", 5: "aerial"}


def read_ag_vpreid(root: str | Path) -> Dataset:
    """Read AG-VPReID as its 2025 challenge hands it out.

    Known from the challenge's repository: the folders ``train``, ``case1_aerial_to_ground`` and
    ``case2_ground_to_aerial`` with ``query`` and ``gallery``; below them person, tracklet and
    frames; cameras C0 and C1 are CCTV, C2 and C3 wearable, C4 and C5 drones; the camera in the name
    of an image stands after a ``C`` (its baseline reads it between ``C`` and ``E``). Assumed: all
    images of a tracklet are of one camera, and a person's folder has the same name in query and
    gallery, as the challenge's attribute tables have it.

    Args:
        root: The folder.

    Returns:
        Tracklets with ``platform`` ``"cctv"``, ``"wearable"`` or ``"aerial"``. Persons are the
        names of their folders.

    Raises:
        TableError: A folder is missing or empty, or the name of an image tells no camera.
    """
    return read_parts(
        root,
        name="ag-vpreid",
        train=["train"],
        test=[f"{case}/{part}" for case in (_CASE1, _CASE2) for part in ("query", "gallery")],
        protocols=AG_VPREID_PROTOCOLS,
        layout="{person}/{tracklet}",
        frame_name=r"C(?P<camera>[0-5])(?!\d)",
        platforms=_PLATFORMS,
    )
