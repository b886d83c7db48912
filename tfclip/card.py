"""The README.md that travels with saved weights: a model card made of the configuration's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tfclip.config import TFCLIPConfig
from tfclip.errors import TableError

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


_FIGURES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}


def model_card(
    config: TFCLIPConfig,
    widths: Mapping[str, int],
    name: str,
    reports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a model card as the text of a ``README.md``, with the Hub's metadata at its head.

    Args:
        config: Configuration of the model. ``provenance`` is printed as it stands; its key
            ``base_model``, a Hub id, becomes metadata, and ``weights = "random"`` makes the card
            say that the model is untrained.
        widths: Length of each part of the embedding.
        name: What the card's example loads: a Hub id or a folder.
        reports: Evaluations of these weights, each as ``EvaluationReport.to_dict`` gives it and
            ``report.json`` holds it. Their figures stand in the card with their protocol, and as
            ``model-index`` in its head.

    Returns:
        Markdown with a YAML head.

    Raises:
        TableError: A report lacks what a report has.

    Example:
        >>> widths = {"appearance": 768, "projected": 512, "temporal": 768}
        >>> card = model_card(TFCLIPConfig(), widths, "org/name")
        >>> [line for line in card.splitlines() if line.startswith("| `[1280:")]
        ['| `[1280:2048]` | temporal | what the temporal head makes of the frames together |']
    """
    try:
        results = [result for report in reports for result in _results(report)]
        measured = _measured(reports)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TableError(f"reports must be those of tfclip evaluate, check {error}") from error
    metadata = ModelCardData(
        # Both or neither: the Hub wants a name with results and results with a name.
        **({"model_name": _short_name(name), "eval_results": results} if results else {}),
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
        measured,
        _threshold(config),
        _provenance(config),
        _USES,
        _LIMITS,
        _LICENCE,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _short_name(name: str) -> str:
    return name.rpartition("/")[2]


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    """Return the figures of a report as the Hub's metadata has them."""
    dataset, protocol = str(report["dataset"]), str(report["protocol"]["name"])
    return [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Video-based person re-identification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=f"{protocol}: {row['name']}",
            dataset_args={"protocol": str(row["protocol"])},
            metric_type=key,
            metric_name=figure,
            metric_value=round(100 * float(row[key]), 2),
            metric_config="percent",
        )
        for row in report["rows"]
        for key, figure in _FIGURES.items()
    ]


def _measured(reports: Sequence[Mapping[str, Any]]) -> str:
    if not reports:
        return (
            "## Measured\n\nThis card claims no accuracy: nothing was measured when it was written."
        )
    lines = ["## Measured", ""]
    for report in reports:
        lines += [
            f"**{report['dataset']}, protocol {report['protocol']['name']}**, in percent:",
            "",
        ]
        lines += ["| row | " + " | ".join(_FIGURES.values()) + " | valid queries |"]
        lines += ["| --- |" + " ---: |" * (len(_FIGURES) + 1)]
        for row in report["rows"]:
            figures = " | ".join(f"{100 * row[key]:.2f}" for key in _FIGURES)
            lines.append(f"| {row['name']} | {figures} | {row['num_valid_queries']:,} |")
        protocols = dict.fromkeys(str(row["protocol"]) for row in report["rows"])
        versions = ", ".join(f"{key} {value}" for key, value in report["versions"].items())
        fingerprint = report["model"]["fingerprint"]
        lines += ["", *(f"- {protocol}" for protocol in protocols)]
        lines += [f"- weights with fingerprint `{fingerprint}`; {versions}", ""]
    return "\n".join(lines).rstrip()


def _threshold(config: TFCLIPConfig) -> str:
    known = config.calibration
    if not known:
        return (
            "## Threshold\n\nNone was fitted. `tfclip evaluate --fit-threshold` fits one on data "
            "of yours."
        )
    return f"""## Threshold

Two tracklets whose squared Euclidean distance is at most **{known["threshold"]:.4g}** are said to
match. On the pairs that it was fitted on, {known["num_same"]:,} of one person and
{known["num_different"]:,} of two persons of {" ".join(str(known["fitted_on"]).split())}:

- false match rate {known["false_match_rate"]:.3g} ({known["asked_false_match_rate"]:.3g} was asked)
- false non-match rate {known["false_non_match_rate"]:.3g}
- sampling `{known["sampling"]}`, cameras {"told" if known["cameras"] else "not told"}; weights with
  fingerprint `{known["fingerprint"]}`

Other cameras, another detector or another country need another threshold."""


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


_USES = """## Intended use

- Finding a person again in the pictures of other cameras, for somebody who may look at those
  pictures and looks at what is found; research on re-identification.
- Tracklets of one person each, as a detector and a tracker cut them out."""

_LIMITS = """## Limits

- A distance ranks candidates; it does not say that two people are the same. A threshold has to be
  calibrated on data like yours.
- The method compares what people look like, their clothes above all: a change of clothes, or two
  people dressed alike, misleads it. A tracklet that jumps to another person gives a mixed vector.
- Measure it on your own cameras before you rely on it, also for each group of people that it will
  be used on: errors need not be equal among them.

## Out of scope

- Finding or following people without a legal basis, or without telling them where the law asks so.
- Decisions about a person that rest on a match alone, without somebody looking.
- Naming a person, recognising faces, or any claim of biometric proof."""

_LICENCE = """## Licence

The code of `tfclip` is under the MIT licence. Weights also carry the terms of what they were made
from, the starting weights and the training data: see above, and mind that data sets of people are
often for research only."""
