"""Walking people drawn by code: tracklets without a download, a licence or a real face.

``SyntheticTracklets`` is a data set of any size. A person keeps body, hair, clothes and bag in
every camera; a camera keeps its place, viewpoint, light and colours for everyone. Two people can
also share one look and differ only in what happens *between* the frames of a tracklet.
``SyntheticVideo`` lets several of them walk through one picture.
"""

from __future__ import annotations

from tfclip.data.synthetic.crowd import SyntheticVideo as SyntheticVideo
from tfclip.data.synthetic.dataset import CUES as CUES
from tfclip.data.synthetic.dataset import Cue as Cue
from tfclip.data.synthetic.dataset import SyntheticTracklet as SyntheticTracklet
from tfclip.data.synthetic.dataset import SyntheticTracklets as SyntheticTracklets

__all__ = ["CUES", "Cue", "SyntheticTracklet", "SyntheticTracklets", "SyntheticVideo"]
