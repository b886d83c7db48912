"""Other people's files to ours: the authors' checkpoints and CLIP's own weights.

This is the only module that reads pickles, and never one with code in it: ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from tfclip.backbones import build_backbone, patch_grid
from tfclip.config import Activation, Neck, TFCLIPConfig
from tfclip.errors import ConfigError, WeightsError
from tfclip.hub import load_weights, read_safetensors

if TYPE_CHECKING:
    from tfclip.model import TFCLIP
    from tfclip.objective import TFCLIPObjective

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound="TFCLIP")

_MD, _TMC = r"temporal.diffusion.diffusions.\1.", r"temporal.diffusion.constructions.\1."
_ATTENTION = {"in_proj_": "input_projection.", "out_proj.": "output_projection."}

# The reference's names and ours, for the model that retrieves. Order matters: first match wins.
_MODEL_NAMES: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.", "backbone.tower."),
    (r"cv_embed$", "camera_embedding"),
    (r"TMD\.resblocks\.(\d+)\.message_fc\.", _TMC + "message."),
    (r"TMD\.resblocks\.(\d+)\.message_ln\.", _TMC + "norm."),
    *(
        (rf"TMD\.resblocks\.(\d+)\.message_attn\.{a}", _TMC + f"attention.{b}")
        for a, b in _ATTENTION.items()
    ),
    *(
        (rf"TMD\.resblocks\.(\d+)\.attn\.{a}", _MD + f"attention.{b}")
        for a, b in _ATTENTION.items()
    ),
    (r"TMD\.resblocks\.(\d+)\.ln_1\.", _MD + "attention_norm."),
    (r"TMD\.resblocks\.(\d+)\.ln_2\.", _MD + "mlp_norm."),
    (r"TMD\.resblocks\.(\d+)\.mlp\.c_fc\.", _MD + "mlp.0."),
    (r"TMD\.resblocks\.(\d+)\.mlp\.c_proj\.", _MD + "mlp.2."),
)

# Batch norms ("necks"): the reference calls the clip's "temp2" and the frames' "temp".
_NECK_NAMES: tuple[tuple[str, str], ...] = (
    (r"bottleneck\.", "necks.appearance."),
    (r"bottleneck_proj\.", "necks.projected."),
    (r"bottleneck_proj_temp2\.", "necks.temporal."),
    (r"bottleneck_proj_temp\.", "necks.frame."),
)

_LAYER = r"SSP\.decoder\.(\d+)\."
_OURS = r"prompt.layers.\1."
# What only training needs.
_OBJECTIVE_NAMES: tuple[tuple[str, str], ...] = (
    *_NECK_NAMES,
    (r"classifier2\.", "classifiers.appearance."),
    (r"classifier_proj\.", "classifiers.projected."),
    (r"classifier_proj_temp\.", "classifiers.temporal."),
    (r"SSP\.memory_proj\.", "prompt.context_projection."),
    (r"SSP\.text_proj\.", "prompt.memory_projection."),
    (r"SSP\.out_proj\.", "prompt.prompt_projection."),
    *(
        (rf"{_LAYER}{kind}_attn\.{theirs}\.", f"{_OURS}{kind}_attention.{ours}.")
        for kind in ("self", "cross")
        for theirs, ours in (
            ("q_proj", "query"),
            ("k_proj", "key"),
            ("v_proj", "value"),
            ("proj", "output"),
        )
    ),
    (_LAYER + r"norm1\.", _OURS + "self_norm."),
    (_LAYER + r"norm2\.", _OURS + "cross_norm."),
    (_LAYER + r"norm3\.", _OURS + "mlp_norm."),
    (_LAYER + r"mlp\.", _OURS + "mlp."),
)

# Entries of every checkpoint that no forward of the reference reads.
_DEAD_NAMES = (r"classifier_proj_temp2\.", r"SSP\.alpha$", r"SSP\.norm\.")

# Marks of OpenAI's own files, which no re-trained CLIP carries.
_OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})


@overload
def from_reference(
    path: str | Path,
    *,
    with_objective: Literal[False] = False,
    neck: Neck = "before",
    clip_length: int = 8,
    frame_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> TFCLIP: ...


@overload
def from_reference(
    path: str | Path,
    *,
    with_objective: Literal[True],
    neck: Neck = "before",
    clip_length: int = 8,
    frame_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> tuple[TFCLIP, TFCLIPObjective]: ...


def from_reference(
    path: str | Path,
    *,
    with_objective: bool = False,
    neck: Neck = "before",
    clip_length: int = 8,
    frame_size: tuple[int, int] | None = None,
    stride: int | None = None,
) -> TFCLIP | tuple[TFCLIP, TFCLIPObjective]:
    """Convert a checkpoint of the authors' release, ``best_model.pth.tar``.

    Sizes are read from the shapes. What only training uses is dropped unless asked for, and what
    the reference itself never reads is dropped always; ``config.provenance`` lists both.

    Args:
        path: The checkpoint, with or without ``module.`` before its names.
        with_objective: Also return identity heads, necks and prompt; the CLIP-Memory is not in the
            checkpoint and has to be built again.
        neck: ``"before"`` is the reference's test feature; ``"after"`` takes appearance and
            projected features after their batch norms, as its ``NECK_FEAT: after`` does.
        clip_length: Frames in a clip; the checkpoint does not tell.
        frame_size: Height and width in pixels, when they are not 256 x 128.
        stride: Step between patches, when it is neither the patch size nor 12.

    Returns:
        The model in eval mode, or the model and its objective.

    Raises:
        WeightsError: The file cannot be read, has code in it, or is not such a checkpoint.
        ConfigError: An argument does not fit the checkpoint.
    """
    from tfclip.model import TFCLIP
    from tfclip.objective import TFCLIPObjective

    path = Path(path)
    checkpoint = read_checkpoint(path)
    model_names = _MODEL_NAMES + (_NECK_NAMES[:2] if neck == "after" else ())
    ours, rest = _rename(checkpoint, model_names)
    _check_is_reference(path, ours)
    theirs, unknown = _rename(
        rest if neck == "before" else _training_part(checkpoint), _OBJECTIVE_NAMES
    )
    dead = sorted(name for name in unknown if any(re.match(d, name) for d in _DEAD_NAMES))
    if set(unknown) - set(dead):
        raise WeightsError(
            f"{path} is not a checkpoint of the TF-CLIP release; it also has "
            f"{sorted(set(unknown) - set(dead))[:3]}"
        )
    dropped = dead if with_objective else sorted(set(rest) - set(ours))
    config = _read_config(path, ours, neck, clip_length, frame_size, stride).replace(
        provenance={
            "source": path.name,
            "sha256": file_sha256(path),
            "converted_from": "TF-CLIP release (AsuradaYuci/TF-CLIP)",
            "dropped": ", ".join(dropped),
        }
    )
    logger.info("dropped %d entries of %s: %s", len(dropped), path, ", ".join(dropped))
    model = TFCLIP(config).eval()
    load_weights(model, ours, str(path))
    if not with_objective:
        return model
    num_identities = len(theirs["classifiers.appearance.weight"])
    objective = TFCLIPObjective(config, num_identities)
    load_weights(objective, theirs, str(path))
    return model, objective


def from_clip(cls: type[ModelT], name: str, pretrained: str | Path, **changes: Any) -> ModelT:
    """Make a tracklet encoder of a plain CLIP tower; see ``TFCLIP.from_clip``."""
    changes = {
        "descriptor": ("appearance", "projected"),
        "provenance": {
            "weights": f"{name}, {_last_part(pretrained)}",
            "temporal": "random, not in the descriptor",
        },
        **changes,
    }
    if name.startswith("timm:"):
        return _from_timm(cls, name, str(pretrained), changes)
    if Path(pretrained).is_file():
        tensors, activation = read_clip(Path(pretrained))
        settings: dict[str, Any] = {}
        if activation is None and "activation" not in changes:
            raise ConfigError(
                f"activation must be given for {pretrained}, which does not tell whether it was "
                "trained with 'quick_gelu' (OpenAI, DFN, MetaCLIP) or 'gelu' (most others)"
            )
    else:
        settings, activation = _tag_settings(name, str(pretrained))
        TFCLIPConfig(backbone=name, **{"activation": activation, **settings, **changes})
        tensors, _ = read_clip(_download(name, str(pretrained)))
    if activation is not None and changes.setdefault("activation", activation) != activation:
        raise ConfigError(
            f"activation must be {activation!r}, with which the weights {pretrained} were trained, "
            f"got {changes['activation']!r}"
        )
    model = cls(TFCLIPConfig(backbone=name, **{**settings, **changes}))
    model.backbone.load_tower(tensors, model.config.position_resize)
    return model.eval()


class CLIPWeights(NamedTuple):
    """The visual tensors of a CLIP, and its activation where the file tells it."""

    tensors: dict[str, Tensor]
    activation: Activation | None


def read_clip(path: str | Path) -> CLIPWeights:
    """Read the image tower of a CLIP from a local file in OpenAI's format.

    Args:
        path: A scripted archive, as OpenAI publishes it, a pickled state dict or safetensors; the
            text tower is left out.

    Returns:
        Tensors under OpenAI's names without ``visual.``, and ``"quick_gelu"`` for OpenAI's own
        files, None for others.

    Raises:
        WeightsError: The file cannot be read, has code in it, or has no image tower.
    """
    tensors = read_checkpoint(path)
    visual = {
        name.removeprefix("visual."): tensor
        for name, tensor in tensors.items()
        if name.startswith("visual.")
    }
    if not visual and "conv1.weight" in tensors:
        visual = dict(tensors)
    if "conv1.weight" not in visual:
        raise WeightsError(
            f"{path} has no image tower under OpenAI's names ('visual.conv1.weight')"
        )
    return CLIPWeights(visual, "quick_gelu" if _OPENAI_MARKS & set(tensors) else None)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors, a pickled state dict or a scripted archive.

    ``module.`` before the names, left by data-parallel training, is removed.

    Raises:
        WeightsError: The file is missing, damaged, has code in it or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        return _plain_names(read_safetensors(path))
    try:
        if _is_scripted(path):
            with warnings.catch_warnings():
                # OpenAI publishes scripted archives; that the format is old is no news to the user.
                warnings.simplefilter("ignore")
                loaded = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is no checkpoint at all, and was not loaded: a "
            "pickle can run any code"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be read, it is damaged or cut off: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} must hold a state dict, got {type(loaded).__name__}")
    tensors = {name: x for name, x in loaded.items() if isinstance(x, Tensor)}
    if len(tensors) != len(loaded):
        other = next(name for name, x in loaded.items() if not isinstance(x, Tensor))
        raise WeightsError(f"{path} must hold tensors only, got {other!r}")
    return _plain_names(tensors)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def _is_scripted(path: Path) -> bool:
    """Tell a TorchScript archive from a pickled state dict: it has its code in a folder."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _rename(
    tensors: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split tensors into those the table names, under our names in float32, and the rest."""
    ours, rest = {}, {}
    for name, tensor in tensors.items():
        for theirs, replacement in names:
            renamed, count = re.subn("^" + theirs, replacement, name)
            if count:
                ours[renamed] = tensor.float() if tensor.is_floating_point() else tensor
                break
        else:
            rest[name] = tensor
    return ours, rest


def _training_part(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the retrieving model does not have; necks belong to training as well."""
    return _rename(checkpoint, _MODEL_NAMES)[1]


def _check_is_reference(path: Path, ours: Mapping[str, Tensor]) -> None:
    needed = ("class_embedding", "conv1.weight", "positional_embedding", "proj")
    missing = [name for name in needed if f"backbone.tower.{name}" not in ours]
    if missing:
        raise WeightsError(
            f"{path} is not a checkpoint of the TF-CLIP release with a vision transformer; "
            f"it has no {['image_encoder.' + name for name in missing]}"
        )


def _read_config(
    path: Path,
    ours: Mapping[str, Tensor],
    neck: Neck,
    clip_length: int,
    frame_size: tuple[int, int] | None,
    stride: int | None,
) -> TFCLIPConfig:
    """Read the sizes of a model off its tensors."""
    conv = ours["backbone.tower.conv1.weight"]
    width, patch = conv.shape[0], conv.shape[2]
    sizes = {
        "width": width,
        "layers": _count(ours, r"backbone\.tower\.transformer\.resblocks\.(\d+)\."),
        "heads": max(1, width // 64),
        "patch_size": patch,
        "output_dim": ours["backbone.tower.proj"].shape[1],
    }
    released = {"width": 768, "layers": 12, "heads": 12, "patch_size": 16, "output_dim": 512}
    num_patches = len(ours["backbone.tower.positional_embedding"]) - 1
    frame_size, stride = _find_grid(path, num_patches, patch, frame_size, stride)
    cameras = ours.get("camera_embedding")
    return TFCLIPConfig(
        backbone="ViT-B-16",
        backbone_options={k: v for k, v in sizes.items() if released[k] != v},
        frame_size=frame_size,
        stride=None if stride == patch else stride,
        clip_length=clip_length,
        num_cameras=0 if cameras is None else len(cameras),
        temporal_depth=_count(ours, r"temporal\.diffusion\.diffusions\.(\d+)\."),
        neck=neck,
        descriptor=(
            ("appearance", "projected", "temporal")
            if neck == "before"
            else ("appearance", "projected")
        ),
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbered blocks a state dict has."""
    return 1 + max((int(m[1]) for m in map(re.compile(pattern).match, tensors) if m), default=0)


def _find_grid(
    path: Path,
    num_patches: int,
    patch: int,
    frame_size: tuple[int, int] | None,
    stride: int | None,
) -> tuple[tuple[int, int], int]:
    """Find the frame size and stride that give this many patches; persons are 2:1."""
    sizes = (
        [frame_size]
        if frame_size
        else [(256, 128), *((2 * w, w) for w in range(patch, 1025, patch))]
    )
    strides = [stride] if stride else [patch, 12]
    for size in sizes:
        for step in strides:
            if step <= patch and math.prod(patch_grid(size, patch, step)) == num_patches:
                return size, step
    raise ConfigError(
        f"frame_size and stride must give the {num_patches} patches that {path} has positions for, "
        f"got {frame_size} and {stride}; pass both"
    )


def _tag_settings(name: str, tag: str) -> tuple[dict[str, Any], Activation]:
    """Return how the weights of an open_clip tag want their frames, and their activation."""
    import open_clip

    known = open_clip.pretrained.get_pretrained_cfg(name, tag)
    if not known:
        build_backbone(TFCLIPConfig(backbone=name))  # an unknown name says so itself
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"pretrained must be a file or a tag of {name!r}, got {tag!r}; its tags are {tags}"
        )
    settings = {name: tuple(known[name]) for name in ("mean", "std")}
    if known.get("interpolation") in ("bilinear", "bicubic"):
        settings["interpolation"] = known["interpolation"]
    return settings, "quick_gelu" if known.get("quick_gelu") else "gelu"


def _download(name: str, tag: str) -> Path:
    """Let open_clip fetch the weights of a tag."""
    import open_clip

    try:
        found = open_clip.pretrained.download_pretrained(
            open_clip.pretrained.get_pretrained_cfg(name, tag)
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {tag!r} of {name!r} could not be downloaded: {error}"
        ) from error
    return Path(found)


def _from_timm(cls: type[ModelT], name: str, tag: str, changes: dict[str, Any]) -> ModelT:
    """Build a model whose tower timm fetches."""
    import timm

    architecture = name.removeprefix("timm:").partition(".")[0]
    tags = [known.partition(".")[2] for known in timm.list_pretrained(architecture + ".*")]
    if timm.is_model(architecture) and tag not in tags:
        raise ConfigError(f"pretrained must be a tag of {name!r}, got {tag!r}; its tags are {tags}")
    config = TFCLIPConfig(backbone=f"timm:{architecture}.{tag}", **changes)
    try:
        backbone = build_backbone(config, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {tag!r} of {name!r} could not be downloaded: {error}"
        ) from error
    known = backbone.tower.pretrained_cfg
    settings: dict[str, Any] = {name: tuple(known[name]) for name in ("mean", "std")}
    if known.get("interpolation") in ("bilinear", "bicubic"):
        settings["interpolation"] = known["interpolation"]
    model = cls(TFCLIPConfig(backbone=f"timm:{architecture}", **{**settings, **changes}))
    load_weights(model.backbone.tower, backbone.tower.state_dict(), f"{architecture}.{tag}")
    return model.eval()


def _last_part(pretrained: str | Path) -> str:
    """Return a tag, or the name of a file without the folders of the user's machine."""
    return Path(pretrained).name
