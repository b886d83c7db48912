"""Other people's files to ours: the authors' checkpoints and CLIP's own weights."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, overload

import torch
from torch import Tensor

from tfclip.backbones import Backbone, build_backbone, patch_grid
from tfclip.checkpoints import file_sha256, read_checkpoint
from tfclip.config import Activation, Interpolation, Neck, TFCLIPConfig
from tfclip.errors import ConfigError, WeightsError
from tfclip.tensors import load_weights
from tfclip.untrusted import first_line

if TYPE_CHECKING:
    from tfclip.model import TFCLIP
    from tfclip.objective import TFCLIPObjective

_logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound="TFCLIP")

_BLOCK = r"TMD\.resblocks\.(\d+)\."
_TMC, _MD = r"temporal.diffusion.constructions.\1.", r"temporal.diffusion.diffusions.\1."

# The reference's names and ours, for the model that retrieves.
_MODEL_NAMES: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.", "backbone.tower."),
    (r"cv_embed$", "camera_embedding"),
    (_BLOCK + r"message_fc\.", _TMC + "message."),
    (_BLOCK + r"message_ln\.", _TMC + "norm."),
    (_BLOCK + r"message_attn\.in_proj_", _TMC + "attention.input_projection."),
    (_BLOCK + r"message_attn\.out_proj\.", _TMC + "attention.output_projection."),
    (_BLOCK + r"attn\.in_proj_", _MD + "attention.input_projection."),
    (_BLOCK + r"attn\.out_proj\.", _MD + "attention.output_projection."),
    (_BLOCK + r"ln_1\.", _MD + "attention_norm."),
    (_BLOCK + r"ln_2\.", _MD + "mlp_norm."),
    (_BLOCK + r"mlp\.c_fc\.", _MD + "mlp.0."),
    (_BLOCK + r"mlp\.c_proj\.", _MD + "mlp.2."),
)

# Batch norms ("necks") of the features that the reference can be asked to test after them.
_TESTED_NECK_NAMES: tuple[tuple[str, str], ...] = (
    (r"bottleneck\.", "necks.appearance."),
    (r"bottleneck_proj\.", "necks.projected."),
)

_LAYER = r"SSP\.decoder\.(\d+)\."
_OURS = r"prompt.layers.\1."

# What only training needs.
_OBJECTIVE_NAMES: tuple[tuple[str, str], ...] = (
    *_TESTED_NECK_NAMES,
    (r"bottleneck_proj_temp2\.", "necks.temporal."),
    (r"bottleneck_proj_temp\.", "necks.frame."),
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
_DEAD_NAMES = re.compile(r"classifier_proj_temp2\.weight|SSP\.alpha|SSP\.norm\.(weight|bias)")

# Entries that the sizes of a model are read from, and how many dimensions they have.
_NEEDED = {
    "image_encoder.class_embedding": 1,
    "image_encoder.conv1.weight": 4,
    "image_encoder.positional_embedding": 2,
    "image_encoder.proj": 2,
}
_SIZING = {**_NEEDED, "cv_embed": 2, "classifier2.weight": 2}

# Frame sizes to try when none is given: 256 x 128 and others of a person's shape.
_TALL_FRAMES = [(2 * width, width) for width in range(16, 1025, 16)]

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
        frame_size: Height and width in pixels; None finds a size of 2:1 that gives as many patches
            as the checkpoint has positions for.
        stride: Step between patches; None tries the patch size and 12.

    Returns:
        The model in eval mode, or the model and its objective.

    Raises:
        WeightsError: The file cannot be read, has code in it, or is not such a checkpoint.
        ConfigError: An argument is invalid or does not fit the checkpoint.
    """
    from tfclip.model import TFCLIP
    from tfclip.objective import TFCLIPObjective

    asked = TFCLIPConfig(
        neck=neck,
        descriptor=("appearance", "projected", *(("temporal",) if neck == "before" else ())),
        clip_length=clip_length,
        frame_size=(256, 128) if frame_size is None else frame_size,
        stride=stride,
    )
    path = Path(path)
    checkpoint = read_checkpoint(path)
    tested_necks = _TESTED_NECK_NAMES if neck == "after" else ()
    model_names = _new_names(checkpoint, (*_MODEL_NAMES, *tested_necks))
    objective_names = _new_names(checkpoint, _OBJECTIVE_NAMES)
    _check_is_reference(path, checkpoint, {*model_names, *objective_names})
    used = {*model_names, *objective_names} if with_objective else set(model_names)
    dropped = sorted(checkpoint.keys() - used)
    tensors = _renamed(checkpoint, model_names)
    sizes = [asked.frame_size] if frame_size else _TALL_FRAMES
    config = _read_config(path, tensors, asked, sizes).replace(
        provenance={
            "source": path.name,
            "sha256": file_sha256(path),
            "converted_from": "TF-CLIP release (AsuradaYuci/TF-CLIP)",
            "dropped": ", ".join(dropped),
        }
    )
    _logger.info("dropped %d entries of %s: %s", len(dropped), path, ", ".join(dropped))
    model = TFCLIP(config).eval()
    load_weights(model, tensors, str(path))
    if not with_objective:
        return model
    tensors = _renamed(checkpoint, objective_names)
    num_identities = len(tensors.get("classifiers.appearance.weight", [0]))
    depth = _count(tensors, r"prompt\.layers\.(\d+)\.")
    objective = TFCLIPObjective(config, num_identities, prompt_depth=depth)
    load_weights(objective, tensors, str(path))
    return model, objective


def from_clip(cls: type[ModelT], name: str, pretrained: str | Path, **changes: Any) -> ModelT:
    """Make a tracklet encoder of a plain CLIP tower; see ``TFCLIP.from_clip``."""
    changes = {
        "descriptor": ("appearance", "projected"),
        "provenance": {
            # Of a file its name alone, without the folders of this machine.
            "weights": f"{name}, {Path(pretrained).name}",
            "temporal": "random, not in the descriptor",
        },
        **changes,
    }
    if name.startswith("timm:"):
        return _from_timm(cls, name, str(pretrained), changes)
    weights = None
    if os.path.isfile(pretrained):  # noqa: PTH113 (no name is an error to it)
        weights = read_clip(pretrained)
        settings, activation = _clip_settings(), weights.activation
    else:
        settings, activation = _tag_settings(name, str(pretrained))
    settings = {"activation": activation, **settings, **changes}
    if settings["activation"] is None:
        raise ConfigError(
            f"activation must be given for {pretrained}, which does not tell whether it was "
            "trained with 'quick_gelu' (OpenAI, DFN, MetaCLIP) or 'gelu' (most others)"
        )
    if activation is not None and settings["activation"] != activation:
        raise ConfigError(
            f"activation must be {activation!r}, with which the weights {pretrained} were trained, "
            f"got {settings['activation']!r}"
        )
    model = cls(TFCLIPConfig(backbone=name, **settings))  # before anything is downloaded
    if weights is None:
        weights = read_clip(_download(name, str(pretrained)))
    model.backbone.load_tower(weights.tensors, model.config.position_resize)
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
        visual = tensors
    if "conv1.weight" not in visual:
        raise WeightsError(
            f"{path} has no image tower under OpenAI's names ('visual.conv1.weight')"
        )
    return CLIPWeights(visual, "quick_gelu" if _OPENAI_MARKS & set(tensors) else None)


def _new_names(
    checkpoint: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """Return our name of each entry that the table knows."""
    names = {}
    for name in checkpoint:
        for theirs, ours in table:
            renamed, count = re.subn("^" + theirs, ours, name)
            if count:
                names[name] = renamed
                break
    return names


def _renamed(checkpoint: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return entries under their new names, in float32."""
    return {
        ours: checkpoint[theirs].float()
        if checkpoint[theirs].is_floating_point()
        else checkpoint[theirs]
        for theirs, ours in names.items()
    }


def _check_is_reference(path: Path, checkpoint: Mapping[str, Tensor], known: set[str]) -> None:
    """Refuse a checkpoint that has not what every one of the release has, or has more."""
    kind = f"{path} is not a checkpoint of the TF-CLIP release with a vision transformer"
    missing = [name for name in _NEEDED if name not in checkpoint]
    if missing:
        raise WeightsError(f"{kind}; it has no {missing}")
    unknown = sorted(
        name for name in checkpoint if name not in known and not _DEAD_NAMES.fullmatch(name)
    )
    if unknown:
        raise WeightsError(f"{kind}; it also has {unknown[:3]}")
    for name, ndim in _SIZING.items():
        if name in checkpoint and (checkpoint[name].ndim != ndim or not checkpoint[name].numel()):
            raise WeightsError(f"{kind}; its {name} has shape {tuple(checkpoint[name].shape)}")


def _read_config(
    path: Path, ours: Mapping[str, Tensor], asked: TFCLIPConfig, frame_sizes: list[tuple[int, int]]
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
    frame_size, stride = _find_grid(path, num_patches, patch, frame_sizes, asked.stride)
    return asked.replace(
        backbone_options={k: v for k, v in sizes.items() if released[k] != v},
        frame_size=frame_size,
        stride=None if stride == patch else stride,
        num_cameras=len(ours.get("camera_embedding", ())),
        temporal_depth=_count(ours, r"temporal\.diffusion\.diffusions\.(\d+)\."),
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbered blocks a state dict has."""
    return 1 + max((int(m[1]) for m in map(re.compile(pattern).match, tensors) if m), default=0)


def _find_grid(
    path: Path,
    num_patches: int,
    patch: int,
    frame_sizes: list[tuple[int, int]],
    stride: int | None,
) -> tuple[tuple[int, int], int]:
    """Find the frame size and stride that give this many patches."""
    fitting = [
        (size, step)
        for size in frame_sizes
        for step in ({patch, 12} if stride is None else {stride})
        if step <= patch <= min(size) and math.prod(patch_grid(size, patch, step)) == num_patches
    ]
    if len(fitting) != 1:
        found = " and ".join(f"{h} x {w} with stride {step}" for (h, w), step in fitting)
        raise ConfigError(
            f"frame_size and stride must be given for {path}, whose {num_patches} patches fit "
            f"{found or 'none of those tried'}"
        )
    return fitting[0]


def _tag_settings(name: str, tag: str) -> tuple[dict[str, Any], Activation]:
    """Return how the weights of an open_clip tag want their frames, and their activation."""
    import open_clip

    known = open_clip.pretrained.get_pretrained_cfg(name, tag)
    if not known:
        with torch.device("meta"):
            build_backbone(TFCLIPConfig(backbone=name))  # an unknown name says so itself
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"pretrained must be a file or a tag of {name!r}, got {tag!r}; its tags are {tags}"
        )
    # A name's own sizes may ask for QuickGELU where the record of the tag forgets it.
    quick = known.get("quick_gelu") or (open_clip.get_model_config(name) or {}).get("quick_gelu")
    return _pixel_settings(known), "quick_gelu" if quick else "gelu"


def _clip_settings() -> dict[str, Any]:
    """Return how OpenAI's CLIP wants its frames, and whoever trained one like it."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return _pixel_settings(
        {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"}
    )


def _pixel_settings(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config for the pixels, as open_clip or timm records them."""
    settings: dict[str, Any] = {field: tuple(known[field]) for field in ("mean", "std")}
    if known.get("interpolation") in get_args(Interpolation):
        settings["interpolation"] = known["interpolation"]
    return settings


def _download(name: str, tag: str) -> Path:
    """Let open_clip fetch the weights of a tag."""
    import open_clip

    known = open_clip.pretrained.get_pretrained_cfg(name, tag)
    try:
        return Path(open_clip.pretrained.download_pretrained(known))
    except Exception as error:  # of the Hub's client, of urllib, or of the check of the file
        raise _not_downloaded(name, tag, error) from error


def _from_timm(cls: type[ModelT], name: str, tag: str, changes: dict[str, Any]) -> ModelT:
    """Build a model whose tower timm fetches."""
    import timm

    architecture, _, own_tag = name.removeprefix("timm:").partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if timm.is_model(architecture) and (tag not in tags or own_tag not in ("", tag)):
        raise ConfigError(f"pretrained must be a tag of {name!r}, got {tag!r}; its tags are {tags}")
    settings: dict[str, Any] = {}
    if known := timm.get_pretrained_cfg(f"{architecture}.{tag}"):
        _check_timm_activation(architecture, tag, known.notes)
        settings = _pixel_settings(known.to_dict())
    config = TFCLIPConfig(backbone=f"timm:{architecture}.{tag}", **{**settings, **changes})
    model = cls(config)  # what does not fit says so before anything is downloaded
    model.backbone = _download_timm(config)
    return model.eval()


def _check_timm_activation(architecture: str, tag: str, notes: tuple[str, ...] | None) -> None:
    """Refuse weights of QuickGELU in a tower of GELU, which timm only notes."""
    if "quickgelu" not in architecture and any("QuickGELU" in note for note in notes or ()):
        right = architecture.replace("_clip_", "_clip_quickgelu_")
        raise ConfigError(
            f"backbone 'timm:{architecture}' computes GELU and the weights {tag!r} were trained "
            f"with QuickGELU; name it 'timm:{right}'"
        )


def _download_timm(config: TFCLIPConfig) -> Backbone:
    try:
        return build_backbone(config, pretrained=True)
    except Exception as error:  # of the Hub's client, of urllib, or of torch
        architecture, _, tag = config.backbone.partition(".")
        raise _not_downloaded(architecture, tag, error) from error


def _not_downloaded(name: str, tag: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"the weights {tag!r} of {name!r} could not be downloaded: {first_line(error)}"
    )
