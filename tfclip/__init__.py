"""Text-free CLIP for video-based person re-identification, in PyTorch.

A tracklet - the crops of one person followed by one camera - becomes one vector.

Importing this package imports nothing heavy: each name below loads its module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tfclip import convert as convert
    from tfclip import data as data
    from tfclip import export as export
    from tfclip import functional as functional
    from tfclip.config import TFCLIPConfig as TFCLIPConfig
    from tfclip.diffusion import MemoryDiffusion as MemoryDiffusion
    from tfclip.diffusion import TemporalMemoryConstruction as TemporalMemoryConstruction
    from tfclip.diffusion import TemporalMemoryDiffusion as TemporalMemoryDiffusion
    from tfclip.gallery import Gallery as Gallery
    from tfclip.memory import CLIPMemory as CLIPMemory
    from tfclip.model import TFCLIP as TFCLIP
    from tfclip.model import TFCLIPOutput as TFCLIPOutput
    from tfclip.objective import TFCLIPObjective as TFCLIPObjective
    from tfclip.prompt import SequenceSpecificPrompt as SequenceSpecificPrompt
    from tfclip.tracking import TrackletEncoder as TrackletEncoder

_HOMES = {
    "TFCLIP": "model",
    "TFCLIPConfig": "config",
    "TFCLIPOutput": "model",
    "TFCLIPObjective": "objective",
    "SequenceSpecificPrompt": "prompt",
    "TemporalMemoryDiffusion": "diffusion",
    "TemporalMemoryConstruction": "diffusion",
    "MemoryDiffusion": "diffusion",
    "CLIPMemory": "memory",
    "Gallery": "gallery",
    "TrackletEncoder": "tracking",
}
_MODULES = ("convert", "data", "export", "functional")

__all__ = [
    "TFCLIP",
    "CLIPMemory",
    "Gallery",
    "MemoryDiffusion",
    "SequenceSpecificPrompt",
    "TFCLIPConfig",
    "TFCLIPObjective",
    "TFCLIPOutput",
    "TemporalMemoryConstruction",
    "TemporalMemoryDiffusion",
    "TrackletEncoder",
    "convert",
    "data",
    "export",
    "functional",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"tfclip.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"tfclip.{name}")
    else:
        raise AttributeError(f"module 'tfclip' has no attribute {name!r}")
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
