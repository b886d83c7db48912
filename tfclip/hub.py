"""Model folders, on disk and on the Hugging Face Hub: config.json, model.safetensors, README.md.

The files are those of ``huggingface_hub.ModelHubMixin``, so every tool for the Hub finds them; the
code is ours. Checked with huggingface_hub 2.4: the mixin's ``from_pretrained`` swallows a private,
gated or missing repository and a wrong revision (it then calls ``_from_pretrained`` without a
config), asks for config.json without the library's name, allows no positional revision, and reads
the configuration at a branch, so that the weights may come from a later commit. ``save_pretrained``
deletes config.json before anything is written, and ``push_to_hub`` overwrites the README on the
Hub. Being strict would mean to override all three, and then nothing of the mixin is left to use.

Only what huggingface_hub 0.34 to 2.x have in common is called here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tfclip import __version__
from tfclip.building import build_empty, part_widths
from tfclip.card import model_card
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, SaveError, TableError, WeightsError
from tfclip.files import replace_when_done
from tfclip.tensors import load_weights, read_safetensors
from tfclip.untrusted import first_line

if TYPE_CHECKING:
    from tfclip.evaluation import EvaluationReport
    from tfclip.model import TFCLIP

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"

_BUNDLED = Path(__file__).parent / "weights"
_THIS_FOLDER = "path/to/this/folder"  # what the example in a new README loads
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to an access token of yours"

# OSError and the base class of the HTTP library that this huggingface_hub uses (requests, httpx or
# httpx2): a connection that breaks during a download raises that library's errors.
_HUB_ERRORS = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ModelFiles(NamedTuple):
    """The files of one model, and where they come from."""

    config: Path
    weights: Path
    source: str  # the folder, or org/name@commit


# Reading


def load(
    cls: Callable[[TFCLIPConfig], ModuleT],
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ModuleT:
    """Build the model of a folder or Hub repository, every weight accounted for.

    torch's random state is the same afterwards as before.

    Args:
        cls: The model class, called with the configuration.
        name_or_path: A folder, the name of a model bundled with tfclip, or a Hub id ``org/name``.
        revision: Branch, tag or full commit hash on the Hub; None is its main branch.
        device: Where the model goes; None is the CPU.
        dtype: Floating-point type of the model; None is that of the file.

    Returns:
        The model, in eval mode.

    Raises:
        WeightsError: There is no such model, it cannot be fetched, or its weights are damaged,
            unsafe or of another architecture.
        ConfigError: Its configuration is invalid or from a newer tfclip.
        ValueError: A revision of something that is not on the Hub, a dtype that is not
            floating-point, or a device that is not there.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    check_device(device)
    files = find(name_or_path, revision=revision)
    config = _read_config(files)
    tensors = read_safetensors(files.weights)
    model = build_empty(cls, config, tensors, files.source)
    model = model.to(dtype=dtype or _floating_dtype(tensors))
    load_weights(model, tensors, files.source)
    return model.to(device=device).eval()


def load_config(name_or_path: str | Path, *, revision: str | None = None) -> TFCLIPConfig:
    """Read the configuration of a model without building it.

    Args:
        name_or_path: A folder, the name of a bundled model, or a Hub id ``org/name``.
        revision: Branch, tag or full commit hash on the Hub; None is its main branch.

    Raises:
        WeightsError: There is no such model, or it cannot be fetched.
        ConfigError: Its configuration is invalid or from a newer tfclip.
        ValueError: A revision of something that is not on the Hub.
    """
    return _read_config(find(name_or_path, revision=revision))


def find(name_or_path: str | Path, *, revision: str | None = None) -> ModelFiles:
    """Find the files of a model, and fetch them when they are on the Hub.

    Args:
        name_or_path: A folder, the name of a bundled model, or a Hub id ``org/name``.
        revision: Branch, tag or full commit hash on the Hub; None is its main branch.

    Returns:
        The two files; ``source`` of a Hub model names the commit, which pins it for ever.

    Raises:
        WeightsError: There is no such model, or it cannot be fetched.
        ValueError: A revision of something that is not on the Hub.
    """
    name = str(name_or_path)
    bundled = {folder.name: folder for folder in _BUNDLED.glob("*/")}
    # os.path, not Path: a name that no path can have is no folder, and no error.
    folder = Path(name) if os.path.isdir(name) else bundled.get(name)  # noqa: PTH112
    if folder is not None:
        if revision is not None:
            raise ValueError(f"revision is for models on the Hub, and {name} is a folder")
        return _find_in_folder(folder)
    if isinstance(name_or_path, Path) or not _is_hub_id(name):
        raise WeightsError(
            f"{name!r} is neither a folder, nor a bundled model {sorted(bundled)}, "
            "nor a Hub id such as 'org/name'"
        )
    return _fetch(name, revision)


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that nothing can be computed on; None is torch's default.

    Raises:
        ValueError: It is not there, or unknown.
    """
    try:
        torch.zeros(1, device=device).item()  # a number, which the meta device has not
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _floating_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """Return the floating-point type of tensors, the one that holds all when they differ."""
    types = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    return functools.reduce(torch.promote_types, types) if types else None


def _read_config(files: ModelFiles) -> TFCLIPConfig:
    try:
        return TFCLIPConfig.from_json(files.config.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise WeightsError(f"cannot read {files.config}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ConfigError(f"{files.source}: {error}") from error


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _find_in_folder(folder: Path) -> ModelFiles:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder} is not a tfclip model: it has no {name} "
                "(tfclip convert makes such a folder from a reference checkpoint)"
            )
    return ModelFiles(folder / CONFIG, folder / WEIGHTS, str(folder))


def _fetch(repo_id: str, revision: str | None) -> ModelFiles:
    # The request for config.json is what the Hub counts as a download, so it comes first. Its
    # commit is the weights' revision, so that a push in between cannot mix two models.
    config = _download(repo_id, CONFIG, revision)
    commit = config.parent.name  # the cache has .../snapshots/<commit>/config.json
    weights = _download(repo_id, WEIGHTS, commit)
    return ModelFiles(config, weights, f"{repo_id}@{commit}")


def _download(repo_id: str, filename: str, revision: str | None) -> Path:
    try:
        path = hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            library_name="tfclip",
            library_version=__version__,
        )
    except _HUB_ERRORS as error:
        reason = _reason(error, repo_id, filename, revision)
        raise WeightsError(f"cannot load {repo_id}: {reason}") from error
    return Path(path)


def _reason(error: Exception, repo_id: str, filename: str, revision: str | None) -> str:
    """Say why a file could not be fetched, and what to do about it."""
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError too
        return f"it is gated; accept its terms on {page}, then {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {page}, or it is private; in that case {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, LocalEntryNotFoundError):  # an EntryNotFoundError too
        download = f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")
        if constants.HF_HUB_OFFLINE:
            return (
                f"{filename} is not in the cache and HF_HUB_OFFLINE is set; "
                f"when online, run: {download}"
            )
        return (
            f"{filename} is not in the cache and {constants.ENDPOINT} does not answer as a Hub; "
            "check the connection, or set HF_ENDPOINT to a mirror"
        )
    if isinstance(error, EntryNotFoundError):
        return f"it has no {filename}, so it is not a tfclip model"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        if error.response.status_code in (401, 403):
            return f"the Hub refuses the access token; {_LOG_IN}"
        return f"the Hub answers with status {error.response.status_code}; try again later"
    return f"{filename} could not be downloaded ({first_line(error)})"


# Writing


def save(
    model: TFCLIP,
    folder: str | Path,
    *,
    name: str = _THIS_FOLDER,
    reports: Sequence[EvaluationReport | Mapping[str, Any]] = (),
) -> None:
    """Write a model as ``config.json``, ``model.safetensors`` and ``README.md``.

    All three are written before the first takes its place, so a full disk leaves the folder as it
    was. An interruption between the renames leaves a folder without a ``config.json``, which does
    not load, and never a configuration beside another model's weights. A README that is there
    already stays.

    Args:
        model: The model.
        folder: Where to; made when missing.
        name: What the example in a new README loads.
        reports: Evaluations of these very weights, for a new README: what ``tfclip.evaluation``
            gives, or what its ``report.json`` holds.

    Raises:
        SaveError: The folder cannot be written, or the disk is full.
        TableError: A report is of other weights, or none.
    """
    folder = Path(folder)
    measured = _reports_of(model, reports)
    config = model.config.to_json()
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    with contextlib.ExitStack() as stack:  # closes, that is renames, in the opposite order
        if not os.path.exists(folder / CARD):  # noqa: PTH110 (what cannot be looked at fails below)
            card = model_card(model.config, model.part_widths, name, measured)
            stack.enter_context(replace_when_done(folder / CARD)).write_text(card, "utf-8")
        stack.enter_context(replace_when_done(folder / CONFIG)).write_text(config, "utf-8")
        _write_safetensors(tensors, stack.enter_context(replace_when_done(folder / WEIGHTS)))
        _withdraw_other_config(folder / CONFIG, config)


def _reports_of(
    model: TFCLIP, reports: Sequence[EvaluationReport | Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return reports as plain mappings; a card must not carry figures of other weights."""
    from tfclip.data.embeddings import model_fingerprint

    plain = [r if isinstance(r, Mapping) else r.to_dict() for r in reports]
    own = model_fingerprint(model) if plain else ""
    for report in plain:
        measured = report.get("model")
        fingerprint = measured.get("fingerprint") if isinstance(measured, Mapping) else None
        if fingerprint != own:
            raise TableError(
                f"reports must be of these weights, whose fingerprint is {own}, got one of "
                f"{fingerprint or 'none'}"
            )
    return plain


def copy_with_config(
    name_or_path: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    **changes: object,
) -> None:
    """Write a copy of a model's folder with fields of its configuration changed, weights untouched.

    As safe as ``save``; a README that is there already stays.

    Args:
        name_or_path: A folder, the name of a bundled model, or a Hub id ``org/name``.
        folder: Where to; made when missing. The model's own folder is possible.
        revision: Branch, tag or full commit hash on the Hub; None is its main branch.
        changes: Fields of ``TFCLIPConfig`` that do not change what weights there must be.

    Raises:
        WeightsError: There is no such model, or it cannot be fetched.
        ConfigError: Its configuration is invalid, or a field's new value is.
        SaveError: The folder cannot be written, or the disk is full.
        ValueError: A revision of something that is not on the Hub.
    """
    files, folder = find(name_or_path, revision=revision), Path(folder)
    config = _read_config(files).replace(**changes)
    text = config.to_json()
    with contextlib.ExitStack() as stack:  # closes, that is renames, in the opposite order
        if not os.path.exists(folder / CARD):  # noqa: PTH110 (what cannot be looked at fails below)
            card = _card_beside(files) or model_card(config, part_widths(config), _THIS_FOLDER)
            stack.enter_context(replace_when_done(folder / CARD)).write_text(card, "utf-8")
        stack.enter_context(replace_when_done(folder / CONFIG)).write_text(text, "utf-8")
        if not (folder / WEIGHTS).exists() or not files.weights.samefile(folder / WEIGHTS):
            weights = stack.enter_context(replace_when_done(folder / WEIGHTS))
            shutil.copyfile(files.weights, weights)
            _withdraw_other_config(folder / CONFIG, text)


def _card_beside(files: ModelFiles) -> str | None:
    card = files.config.with_name(CARD)
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None


def push(
    model: TFCLIP,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Push model with tfclip",
    token: str | None = None,
    reports: Sequence[EvaluationReport | Mapping[str, Any]] = (),
) -> str:
    """Save a model to the Hub, in one commit.

    The repository is made when it is missing; a README that it has already stays.

    Args:
        model: The model.
        repo_id: Hub id ``org/name``.
        private: Whether a new repository is private; None is the organisation's default.
        revision: Branch to push to, made from main when missing; None is main.
        commit_message: First line of the commit.
        token: Access token; None is HF_TOKEN or that of ``hf auth login``.
        reports: Evaluations for a new README, as in ``save``.

    Returns:
        The commit's full hash: as ``revision`` it loads these very weights for ever.

    Raises:
        SaveError: The Hub cannot be reached or refuses, or the temporary folder cannot be written.
        TableError: A report is of other weights, or none.
        ValueError: ``repo_id`` is not of the form ``org/name``.
    """
    if not _is_hub_id(repo_id):
        raise ValueError(f"repo_id must be of the form 'org/name', got {repo_id!r}")
    api = HfApi(token=token, library_name="tfclip", library_version=__version__)
    with tempfile.TemporaryDirectory(prefix="tfclip-") as folder:
        save(model, folder, name=repo_id, reports=reports)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            names = [CONFIG, WEIGHTS]
            if not api.file_exists(repo_id, CARD, revision=revision):
                names.append(CARD)
            # Not upload_folder, which may split the files among several commits.
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(name, Path(folder, name)) for name in names],
                commit_message=commit_message,
                revision=revision,
            )
        except (*_HUB_ERRORS, RuntimeError) as error:  # RuntimeError: a failed upload of weights
            raise SaveError(f"cannot push to {repo_id}: {_refusal(error)}") from error
    return commit.oid


def _write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors puts a file of its own there, which only its owner may read


def _withdraw_other_config(path: Path, config: str) -> None:
    """Remove a configuration that must not be found beside the new weights."""
    if path.exists() and path.read_bytes() != config.encode():
        path.unlink()


def _refusal(error: Exception) -> str:
    """Say why a push failed, and what to do about it."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403, 404):
            return f"the access token may not write there (status {status}); {_LOG_IN}"
        return f"the Hub answers with status {status} ({error.server_message or 'no reason given'})"
    cause = first_line(error.__cause__ or error)
    return f"{constants.ENDPOINT} cannot be reached or broke off ({cause})"
