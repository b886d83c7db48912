"""The README.md that travels with saved weights: a model card made of the configuration's facts."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import ModelCardData

from tfclip.config import TFCLIPConfig

TAGS = [
    "person-re-identification",
    "video",
    "tracklet-embedding",
    "clip",
    "safetensors",
    "arxiv:2312.09627",
]

_PARTS = {
    "appearance": "class token of the backbone (or what it pools), averaged over the frames",
    "projected": "the same after the backbone's projection, averaged over the frames",
    "temporal": "what the temporal head makes of the frames together",
}


def model_card(config: TFCLIPConfig, widths: Mapping[str, int], name: str) -> str:
    """Return a model card as the text of a ``README.md``, with the Hub's metadata at its head.

    Args:
        config: Configuration of the model. ``provenance`` is printed as it stands; its key
            ``base_model``, a Hub id, becomes metadata, and ``weights = "random"`` makes the card
            say that the model is untrained.
        widths: Length of each part of the embedding.
        name: What the card's example loads: a Hub id or a folder.

    Returns:
        Markdown with a YAML head.

    Example:
        >>> widths = {"appearance": 768, "projected": 512, "temporal": 768}
        >>> card = model_card(TFCLIPConfig(), widths, "org/name")
        >>> [line for line in card.splitlines() if line.startswith("| `[1280:")]
        ['| `[1280:2048]` | temporal | what the temporal head makes of the frames together |']
    """
    metadata = ModelCardData(
        license="mit",
        library_name="tfclip",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
        base_model=config.provenance.get("base_model"),
    )
    sections = (
        _introduction(config),
        _usage(name),
        _vector(config, widths),
        _preprocessing(config),
        _provenance(config),
        _LIMITS,
        _LICENCE,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _is_untrained(config: TFCLIPConfig) -> bool:
    return config.provenance.get("weights") == "random"


def _introduction(config: TFCLIPConfig) -> str:
    text = """# TF-CLIP tracklet encoder

A tracklet - the crops of one person followed by one camera - becomes one vector, so that the same
person can be found again in other cameras. The method is text-free CLIP
([TF-CLIP, arXiv:2312.09627](https://arxiv.org/abs/2312.09627)), in the PyTorch library `tfclip`."""
    if not _is_untrained(config):
        return text
    return f"""{text}

**Untrained.** These weights are random numbers, here to try the code with: their vectors say
nothing about who is who."""


def _usage(name: str) -> str:
    return f"""## Usage

```python
from tfclip import TFCLIP, functional

model = TFCLIP.from_pretrained("{name}")  # on the Hub, revision="..." pins it
embeddings = model.encode_sequences(["crops/track_1", "crops/track_2"])  # folders of frames
distance = functional.cosine_distance(embeddings, embeddings)  # smaller is nearer
```"""


def _vector(config: TFCLIPConfig, widths: Mapping[str, int]) -> str:
    rows, start = [], 0
    for part in config.descriptor:
        stop = start + widths[part]
        rows.append(f"| `[{start}:{stop}]` | {part} | {_PARTS[part]} |")
        start = stop
    return "\n".join(
        [
            "## The vector",
            "",
            f"{start} numbers for a tracklet of any length, scaled to length 1 unless "
            "`normalize=False`.",
            f"Each part is taken {config.neck} batch normalisation.",
            "",
            "| slice | part | meaning |",
            "|---|---|---|",
            *rows,
            "",
            _cameras(config),
        ]
    )


def _cameras(config: TFCLIPConfig) -> str:
    if not config.num_cameras:
        return "The model takes no camera number."
    unknown = {"zero": "adds no camera vector", "mean": "adds the mean camera vector"}
    return (
        f"The model knows {config.num_cameras} cameras, numbered from 0; without a camera number "
        f"it {unknown[config.unknown_camera]}."
    )


def _preprocessing(config: TFCLIPConfig) -> str:
    height, width = config.frame_size
    return f"""## Preprocessing

`encode_sequence` does this by itself, from `config.json`.

- RGB frames, each resized to {height} x {width} pixels (height x width), {config.interpolation}
- values in [0, 1], minus the mean {config.mean}, over the standard deviation {config.std}
- clips of {config.clip_length} frames; the vectors of a tracklet's clips are averaged
- backbone `{config.backbone}`, temporal head `{config.temporal_head}`"""


def _provenance(config: TFCLIPConfig) -> str:
    facts = [f"- {key}: {' '.join(str(value).split())}" for key, value in config.provenance.items()]
    return "\n".join(["## Where the weights come from", "", *(facts or ["Not stated."])])


_LIMITS = """## Limits

- A distance ranks candidates; it does not say that two people are the same. A threshold has to be
  calibrated on data like yours.
- The method compares what people look like, their clothes above all: a change of clothes, or two
  people dressed alike, misleads it. A tracklet that jumps to another person gives a mixed vector.
- This card claims no accuracy. Measure it on your own cameras before you rely on it, also for
  each group of people that it will be used on: errors need not be equal among them.

## Out of scope

- Finding or following people without a legal basis, or without telling them where the law asks so.
- Decisions about a person that rest on a match alone, without somebody looking.
- Naming a person, recognising faces, or any claim of biometric proof."""

_LICENCE = """## Licence

The code of `tfclip` is under the MIT licence. Weights also carry the terms of what they were made
from, the starting weights and the training data: see above, and mind that data sets of people are
often for research only."""
