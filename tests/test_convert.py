"""Other people's files to ours: whole, exact, and never run."""

from __future__ import annotations

import errno
import pickle
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tfclip import TFCLIP, TFCLIPConfig, convert
from tfclip.backbones import CLIPResNet, build_backbone
from tfclip.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"atol": 5e-5, "rtol": 0}

# What nothing in the reference reads.
DEAD = {"classifier_proj_temp2.weight", "SSP.alpha", "SSP.norm.weight", "SSP.norm.bias"}

# Golden sizes of CLIP, with the options that make a tower of them.
TINY_CLIP = {"width": 64, "layers": 2, "output_dim": 64}
TINY_TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 2}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="module")
def release() -> dict[str, Tensor]:
    """The recorded checkpoint, in the precision of the release."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_golden("state_dict").items()
    }


@pytest.fixture(scope="module")
def shallow(release: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with one block of its twelve: quick to build."""
    return {
        name: tensor
        for name, tensor in release.items()
        if "resblocks" not in name or ".resblocks.0." in name
    }


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    """A CLIP as OpenAI stores it: text tower, mixed precision and three numbers."""
    return read_golden("clip_tiny")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write anything as the authors do, ``best_model.pth.tar``."""

    def write(content: object, name: str = "best_model.pth.tar") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever wants to download fails, whether or not there is a network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)


def features(model: TFCLIP, *, cameras: bool = True) -> Tensor:
    inputs = read_golden("inputs")
    with torch.inference_mode():
        return model(inputs["frames"], inputs["cam_label"] if cameras else None).embedding


def save_scripted(tensors: dict[str, Tensor], path: Path) -> Path:
    """Write tensors as OpenAI publishes them: in the modules of a scripted archive."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with scripting():
        torch.jit.script(root).save(str(path))
    return path


@contextmanager
def scripting() -> Iterator[None]:
    """Scripting is deprecated, but the format lives on in OpenAI's files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# --- the reference's checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("neck", "recorded"), [("before", "feat_neck_before"), ("after", "feat_neck_after")]
)
def test_a_converted_checkpoint_gives_the_features_of_the_reference(
    release, save, prefix, neck, recorded
):
    path = save({prefix + name: tensor for name, tensor in release.items()})
    model = convert.from_reference(path, clip_length=4, neck=neck)
    torch.testing.assert_close(features(model), read_golden("eval_outputs")[recorded], **TOLERANCE)
    assert not model.training


def test_a_checkpoint_may_be_wrapped_with_the_state_of_its_training(shallow, save):
    wrapped = convert.from_reference(save({"state_dict": shallow, "epoch": 7}, "wrapped.pth.tar"))
    plain = convert.from_reference(save(shallow))
    torch.testing.assert_close(wrapped.state_dict(), plain.state_dict(), atol=0, rtol=0)


def test_half_precision_becomes_single(shallow, save):
    path = save({name: x.half() if x.is_floating_point() else x for name, x in shallow.items()})
    assert {p.dtype for p in convert.from_reference(path).parameters()} == {torch.float32}


@pytest.mark.parametrize(("num_identities", "num_cameras"), [(7, 3), (1, 1), (19, 15)])
def test_identities_and_cameras_are_as_many_as_the_rows(shallow, save, num_identities, num_cameras):
    resized = dict(shallow)
    for name, tensor in shallow.items():
        if name.startswith("classifier"):
            resized[name] = torch.randn(num_identities, tensor.shape[1])
    resized["cv_embed"] = torch.randn(num_cameras, 128)
    model, objective = convert.from_reference(save(resized), with_objective=True)
    assert model.config.num_cameras == num_cameras
    assert objective.num_identities == num_identities
    torch.testing.assert_close(model.state_dict()["camera_embedding"], resized["cv_embed"])
    torch.testing.assert_close(
        objective.classifiers["temporal"].weight.data, resized["classifier_proj_temp.weight"]
    )


def test_a_checkpoint_without_camera_table_is_a_model_without_cameras(release, save):
    path = save({name: tensor for name, tensor in release.items() if name != "cv_embed"})
    model = convert.from_reference(path, clip_length=4)
    assert model.config.num_cameras == 0
    projected = features(model, cameras=False)[:, 128 : 128 + 64]
    torch.testing.assert_close(projected, read_golden("eval_outputs")["get_image"], **TOLERANCE)


@pytest.mark.parametrize(
    ("num_patches", "frame_size", "stride"),
    [
        (8, (64, 32), None),
        (10, (64, 32), 12),
        (128, (256, 128), None),
        (210, (256, 128), 12),
        (288, (384, 192), None),
    ],
)
def test_frame_size_and_stride_are_found_from_the_number_of_positions(
    shallow, save, num_patches, frame_size, stride
):
    table = torch.randn(1 + num_patches, 128)
    path = save({**shallow, "image_encoder.positional_embedding": table})
    model = convert.from_reference(path)
    assert (model.config.frame_size, model.config.stride) == (frame_size, stride)
    torch.testing.assert_close(model.backbone.tower.positional_embedding.data, table)
    assert model(torch.zeros(1, 1, 3, *frame_size)).projected_tokens.shape[1] == 1 + num_patches


def test_frame_size_and_stride_are_asked_for_when_several_fit(shallow, save):
    path = save({**shallow, "image_encoder.positional_embedding": torch.randn(51, 128)})
    with pytest.raises(ConfigError, match=r"128 x 64 with stride 12 and 160 x 80 with stride 16"):
        convert.from_reference(path)
    assert convert.from_reference(path, stride=12).config.frame_size == (128, 64)
    assert convert.from_reference(path, frame_size=(160, 80)).config.stride is None
    assert convert.from_reference(path, frame_size=(80, 160)).backbone.grid == (5, 10)


@pytest.mark.parametrize(
    "arguments", [{}, {"frame_size": (256, 128)}, {"stride": 12}, {"frame_size": (8, 8)}]
)
def test_positions_that_no_frame_size_explains_are_refused(shallow, save, arguments):
    path = save({**shallow, "image_encoder.positional_embedding": torch.randn(8, 128)})
    with pytest.raises(ConfigError, match="7 patches fit none of those tried"):
        convert.from_reference(path, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"neck": "sideways"},
        {"clip_length": 0},
        {"stride": 0},
        {"frame_size": (256, 0)},
        {"frame_size": 256},
    ],
)
def test_wrong_arguments_are_refused_before_the_file_is_read(tmp_path, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        convert.from_reference(tmp_path / "absent", **arguments)


def test_sizes_of_prompt_and_temporal_head_are_read_from_the_blocks(shallow, save):
    deeper = {name: x for name, x in shallow.items() if not name.startswith("SSP.decoder.1.")}
    deeper |= {
        name.replace("TMD.resblocks.0.", "TMD.resblocks.1."): x
        for name, x in shallow.items()
        if name.startswith("TMD.")
    }
    model, objective = convert.from_reference(save(deeper), with_objective=True)
    assert model.config.temporal_depth == 2
    assert objective.prompt is not None
    assert len(objective.prompt.layers) == 1


# --- nothing is lost ---------------------------------------------------------------------------


def contents(tensors: dict[str, Tensor]) -> Counter[bytes]:
    return Counter(bytes(str(x.shape), "ascii") + x.numpy().tobytes() for x in tensors.values())


@pytest.mark.parametrize("neck", ["before", "after"])
@pytest.mark.parametrize("with_objective", [False, True])
def test_each_of_the_254_entries_is_converted_unchanged_or_listed_as_dropped(
    release, save, neck, with_objective
):
    converted = convert.from_reference(save(release), with_objective=with_objective, neck=neck)
    model, objective = converted if with_objective else (converted, None)
    dropped = model.config.provenance["dropped"].split(", ")
    assert set(dropped) <= set(release)
    kept = {name: x for name, x in release.items() if name not in dropped}
    found = contents(dict(model.state_dict()))
    if objective is not None:
        assert set(dropped) == DEAD
        found += contents(dict(objective.state_dict()))
        if neck == "after":  # these two are in both
            both = ("bottleneck.", "bottleneck_proj.")
            found -= contents({n: x for n, x in kept.items() if n.startswith(both)})
    assert len(release) == 254
    assert found == contents(kept)


def test_each_neck_is_that_of_its_own_feature(release, save):
    _, objective = convert.from_reference(save(release), with_objective=True)
    for ours, theirs in {
        "appearance": "bottleneck",
        "projected": "bottleneck_proj",
        "temporal": "bottleneck_proj_temp2",  # the clip's, by whatever name
        "frame": "bottleneck_proj_temp",
    }.items():
        neck = objective.necks[ours]
        for name, tensor in neck.state_dict().items():
            torch.testing.assert_close(tensor, release[f"{theirs}.{name}"], atol=0, rtol=0)
        assert neck.num_batches_tracked == 11
        assert neck.num_batches_tracked.dtype == torch.int64
        assert not neck.bias.requires_grad


def test_a_saved_conversion_loads_bit_for_bit(release, save, tmp_path):
    model = convert.from_reference(save(release), clip_length=4, neck="after")
    model.save_pretrained(tmp_path / "folder")
    loaded = TFCLIP.from_pretrained(tmp_path / "folder")
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(features(loaded), features(model), atol=0, rtol=0)


def test_provenance_names_the_file_and_its_hash_and_no_folder(shallow, save):
    path = save(shallow)
    provenance = convert.from_reference(path).config.provenance
    assert provenance["source"] == "best_model.pth.tar"
    assert provenance["sha256"] == convert.file_sha256(path)
    assert str(path.parent) not in "".join(provenance.values())


# --- bad files ---------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class ScriptedBomb(nn.Module):
    """Writes a file when its scripted archive is loaded as torch loads it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self):  # type: ignore[override]
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]):
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(state[1], state[0])


READERS = [convert.from_reference, convert.read_clip, convert.read_checkpoint]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"weight": x}}])
def test_code_in_a_pickle_is_not_run(shallow, save, tmp_path, read, wrap):
    mark = tmp_path / "mark"
    path = save(wrap(Bomb(mark)))
    with pytest.raises(WeightsError, match="a pickle can run any code"):
        read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so it was live


@pytest.mark.parametrize("read", READERS)
def test_code_in_a_scripted_archive_is_not_run(tmp_path, read):
    mark, path = tmp_path / "mark", tmp_path / "scripted.pt"
    with scripting():
        torch.jit.script(ScriptedBomb(str(mark))).save(str(path))
    with pytest.raises(WeightsError):
        read(path)
    assert not mark.exists()
    with scripting():
        torch.jit.load(str(path))
    assert mark.exists()  # so it was live


def test_a_plain_pickle_in_a_scripted_archive_cannot_call_anything(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "scripted.pt"
    with scripting():
        torch.jit.script(nn.Identity()).save(str(path))
    content = pickle.dumps(Bomb(mark), protocol=2)
    rewrite(path, lambda name, old: content if name.endswith("/data.pkl") else old)
    with pytest.raises(WeightsError, match="a pickle can run any code"):
        convert.read_checkpoint(path)
    assert not mark.exists()


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))


def one_sentence(error: pytest.ExceptionInfo[Exception], path: Path) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["pickle", "old pickle", "scripted", "safetensors"])
def test_a_truncated_file_is_refused(clip, tmp_path, kind, part):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(clip, path)
    elif kind == "scripted":
        save_scripted(clip, path)
    else:
        torch.save(clip, path, _use_new_zipfile_serialization=kind == "pickle")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(WeightsError) as error:
        convert.read_checkpoint(path)
    assert one_sentence(error, path)


@pytest.mark.parametrize("kind", ["pickle", "old pickle", "scripted"])
@settings(
    max_examples=60,
    derandomize=True,  # a file that breaks torch itself should not come up by chance
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, kind, data):
    path = tmp_path / "weights.pt"
    tensors = {"a.weight": torch.ones(2, 3), "a.count": torch.tensor(3)}
    if kind == "scripted":
        save_scripted(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pickle")
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read = convert.read_checkpoint(path)
    except WeightsError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(isinstance(tensor, Tensor) for tensor in read.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "no checkpoint at all"),
        (b"\xff\xd8\xff\xe0 a picture", "no checkpoint at all"),
        ({}, "must hold a state dict, got dict"),
        ([torch.zeros(1)], "must hold a state dict, got list"),
        (torch.zeros(1), "must hold a state dict, got Tensor"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "must hold tensors only, got 'epoch'"),
    ],
)
def test_what_is_no_state_dict_is_refused(save, content, message):
    path = save(content)
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        convert.from_reference(path)
    assert one_sentence(error, path)


def test_a_pickle_of_another_protocol_is_refused_without_a_warning(tmp_path):
    path = tmp_path / "best_model.pth.tar"
    path.write_bytes(pickle.dumps({"weight": threading.Barrier}, protocol=4))
    with pytest.raises(WeightsError, match="holds more than tensors"):
        convert.read_checkpoint(path)  # warnings are errors here


def test_a_file_that_may_not_be_read_is_not_called_damaged(save, shallow, monkeypatch):
    path = save(shallow)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("tfclip.checkpoints.is_scripted", refuse)
    with pytest.raises(WeightsError, match=r"^cannot read .*: Permission denied$"):
        convert.read_checkpoint(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_no_checkpoint(read, name):
    with pytest.raises(WeightsError, match="is not a file"):
        read(Path(name))


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_or_a_folder_is_refused(tmp_path, read):
    for path in (tmp_path, tmp_path / "absent.pth.tar"):
        with pytest.raises(WeightsError, match="is not a file"):
            read(path)


RESNET = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64)}


@pytest.mark.parametrize("other", ["classifier", "clip", "clip resnet", "tfclip"])
def test_a_checkpoint_of_another_architecture_is_refused(clip, shallow, save, other):
    if other == "classifier":
        content = RESNET
    elif other == "clip":
        content = clip
    elif other == "clip resnet":
        content = read_golden("rn50_state_dict")
    else:
        content = dict(convert.from_reference(save(shallow)).state_dict())
    path = save(content)
    with pytest.raises(WeightsError, match="is not a checkpoint of the TF-CLIP release") as error:
        convert.from_reference(path)
    assert one_sentence(error, path)


@pytest.mark.parametrize("with_objective", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier9.weight": torch.zeros(7, 128)}, "also has .*classifier9"),
        ({"SSP.decoder.0.gate.weight": torch.zeros(3)}, "also has .*gate"),
        ({"image_encoder.gate": torch.zeros(3)}, "1 unexpected .*gate"),
        ({"image_encoder.proj": None}, "has no .*proj"),
        ({"TMD.resblocks.0.message_fc.bias": None}, "1 missing .*message.bias"),
        ({"image_encoder.ln_post.bias": torch.zeros(3)}, "1 of another shape .*ln_post.bias"),
        ({"image_encoder.proj": torch.zeros(128)}, r"proj has shape \(128,\)"),
        ({"image_encoder.conv1.weight": torch.zeros(128, 768)}, "conv1.weight has shape"),
        ({"image_encoder.positional_embedding": torch.tensor(1.0)}, "embedding has shape"),
        ({"cv_embed": torch.zeros(0, 128)}, r"cv_embed has shape \(0, 128\)"),
        ({"cv_embed": torch.zeros(3, 64)}, "1 of another shape .*camera_embedding"),
        ({"classifier2.weight": torch.tensor(1.0)}, "classifier2.weight has shape"),
    ],
)
def test_missing_unexpected_and_misshapen_entries_are_named(
    shallow, save, changes, message, with_objective
):
    changed = {k: v for k, v in {**shallow, **changes}.items() if v is not None}
    path = save(changed)
    with pytest.raises(WeightsError, match=message) as error:
        convert.from_reference(path, with_objective=with_objective)
    assert one_sentence(error, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier2.weight": None}, "1 missing .*classifiers.appearance"),
        ({"SSP.decoder.1.norm1.bias": None}, "1 missing .*self_norm.bias"),
        ({"SSP.text_proj.1.weight": torch.zeros(2, 2)}, "1 of another shape"),
        ({"classifier_proj.weight": torch.zeros(8, 64)}, "1 of another shape"),
    ],
)
def test_what_the_objective_lacks_is_named_when_it_is_asked_for(shallow, save, changes, message):
    path = save({k: v for k, v in {**shallow, **changes}.items() if v is not None})
    convert.from_reference(path)
    with pytest.raises(WeightsError, match=message):
        convert.from_reference(path, with_objective=True)


def test_a_width_that_no_heads_divide_is_refused(shallow, save):
    path = save({**shallow, "image_encoder.conv1.weight": torch.zeros(200, 3, 16, 16)})
    with pytest.raises(ConfigError, match="heads must divide"):
        convert.from_reference(path)


# --- CLIP's own files --------------------------------------------------------------------------


def write_clip(tensors: dict[str, Tensor], folder: Path, kind: str) -> Path:
    if kind == "safetensors":
        save_file(tensors, folder / "clip.safetensors")
        return folder / "clip.safetensors"
    if kind == "scripted":
        return save_scripted(tensors, folder / "ViT-B-16.pt")
    torch.save(tensors, folder / "clip.bin")
    return folder / "clip.bin"


@pytest.mark.parametrize("kind", ["scripted", "pickle", "safetensors"])
def test_a_clip_file_gives_its_image_tower_with_the_table_of_this_grid(clip, tmp_path, kind):
    path = write_clip(clip, tmp_path, kind)
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    expected = {
        name.removeprefix("visual."): tensor.float()
        for name, tensor in clip.items()
        if name.startswith("visual.")
    }
    loaded = read_golden("clip_tiny_loaded")["image_encoder.positional_embedding"]
    tower = dict(model.backbone.tower.state_dict())
    torch.testing.assert_close(tower.pop("positional_embedding"), loaded, atol=1e-6, rtol=0)
    expected.pop("positional_embedding")
    torch.testing.assert_close(tower, expected, atol=0, rtol=0)
    assert model.backbone.grid == (16, 8)
    assert not model.training


def test_a_scripted_archive_reads_as_torch_reads_it(clip, tmp_path):
    path = save_scripted(clip, tmp_path / "clip.pt")
    with scripting():
        expected = torch.jit.load(str(path)).state_dict()
    torch.testing.assert_close(convert.read_checkpoint(path), dict(expected), atol=0, rtol=0)


def test_a_clip_as_an_encoder_says_what_is_untrained_and_leaves_it_out(clip, tmp_path):
    path = write_clip(clip, tmp_path, "scripted")
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    assert model.config.descriptor == ("appearance", "projected")
    assert model.config.provenance["weights"] == "ViT-B-16, ViT-B-16.pt"
    assert "random" in model.config.provenance["temporal"]
    assert (model.config.mean, model.config.std) == (CLIP_MEAN, CLIP_STD)
    assert model.config.interpolation == "bicubic"
    pixels = {"mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP, **pixels)
    assert (model.config.mean, model.config.interpolation) == ((0.5, 0.5, 0.5), "bilinear")


def test_openais_files_tell_their_activation(clip, tmp_path):
    path = write_clip(clip, tmp_path, "pickle")
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    assert model.config.activation == "quick_gelu"
    with pytest.raises(ConfigError, match="activation must be 'quick_gelu'"):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP, activation="gelu")


def test_other_files_have_to_be_told_their_activation(clip, tmp_path):
    marks = ("input_resolution", "context_length", "vocab_size")
    path = write_clip({n: x for n, x in clip.items() if n not in marks}, tmp_path, "pickle")
    with pytest.raises(ConfigError, match="activation must be given"):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    for activation in ("gelu", "quick_gelu"):
        model = TFCLIP.from_clip(
            "ViT-B-16", path, backbone_options=TINY_CLIP, activation=activation
        )
        assert model.config.activation == activation


def test_a_tower_alone_is_a_clip_file_too(clip, tmp_path):
    visual = {n.removeprefix("visual."): x for n, x in clip.items() if n.startswith("visual.")}
    torch.save(visual, tmp_path / "tower.pt")
    assert convert.read_clip(tmp_path / "tower.pt").tensors.keys() == visual.keys()
    assert convert.read_clip(tmp_path / "tower.pt").activation is None


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, {"visual.proj": torch.zeros(1)}])
def test_a_file_without_image_tower_is_refused(save, content):
    with pytest.raises(WeightsError, match="has no image tower"):
        TFCLIP.from_clip("ViT-B-16", save(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.proj": None}, "1 missing .*proj"),
        ({"visual.gate": torch.zeros(1)}, "1 unexpected .*gate"),
        ({"visual.proj": torch.zeros(64, 32)}, "1 of another shape .*proj"),
        ({"visual.positional_embedding": torch.zeros(8, 64)}, "position table has 8 rows"),
        ({"visual.positional_embedding": torch.zeros(1, 197, 64)}, "1 of another shape"),
    ],
)
def test_a_clip_that_does_not_fit_says_where(clip, save, changes, message):
    path = save({k: v for k, v in {**clip, **changes}.items() if v is not None})
    with pytest.raises(WeightsError, match=message):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)


def test_the_clip_of_another_name_is_refused(clip, save):
    with pytest.raises(WeightsError, match="does not fit ModifiedResNet"):
        TFCLIP.from_clip("RN50", save(clip), backbone_options={"width": 2, "layers": [1, 1, 1, 1]})


def test_a_clip_resnet_loads_with_the_counters_of_its_batch_norms(save):
    options = {"layers": [1, 2, 1, 1], "width": 8, "heads": 4, "output_dim": 32}
    tensors = {
        # The fixture stores the counters with a dimension, which OpenAI does not.
        name.replace("image_encoder.", "visual."): tensor[0] if "num_b" in name else tensor
        for name, tensor in read_golden("rn50_state_dict").items()
    }
    model = TFCLIP.from_clip(
        "RN50",
        save({**tensors, "vocab_size": torch.tensor(49408)}),
        frame_size=(64, 32),
        backbone_options=options,
    )
    assert isinstance(model.backbone, CLIPResNet)
    counters = {n: x for n, x in tensors.items() if n.endswith("num_batches_tracked")}
    state = model.backbone.tower.state_dict()
    assert counters
    assert all(state[name.removeprefix("visual.")] == x for name, x in counters.items())


# --- open_clip's tags --------------------------------------------------------------------------


@pytest.fixture
def served(clip, tmp_path, monkeypatch) -> list[str]:
    """Answer every tag with the golden CLIP, and return the addresses asked for."""
    weights = {n: x for n, x in clip.items() if n.startswith("visual.")}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    asked: list[str] = []

    def download(known: dict[str, Any]) -> str:
        asked.append(known["hf_hub"])
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", download)
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("ViT-B-16", "openai", "quick_gelu"),
        ("ViT-B-16-quickgelu", "openai", "quick_gelu"),
        ("ViT-B-16", "laion2b_s34b_b88k", "gelu"),
        ("ViT-B-16", "dfn2b", "quick_gelu"),
        ("ViT-B-32", "laion400m_e32", "quick_gelu"),
        # The tag's record forgets what the name's sizes say.
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "quick_gelu"),
    ],
)
def test_the_activation_follows_the_tag(served, name, tag, activation):
    options = {**TINY_CLIP, "patch_size": 16}
    model = TFCLIP.from_clip(name, tag, backbone_options=options)
    assert model.config.activation == activation
    assert model.config.provenance["weights"] == f"{name}, {tag}"
    assert len(served) == 1


def test_the_activation_of_every_tag_is_the_one_open_clip_has_a_name_for():
    """open_clip lists a tag of QuickGELU under a name of its own, which ends in -quickgelu."""
    tags = set(open_clip.list_pretrained())
    mistaken = {}
    for name, tag in tags:
        sizes = (open_clip.get_model_config(name) or {}).get("vision_cfg", {})
        if not sizes or "timm_model_name" in sizes:
            continue
        plain = name.removesuffix("-quickgelu")
        quick = (f"{plain}-quickgelu", tag) in tags
        found = convert._tag_settings(name, tag)[1]
        if found != ("quick_gelu" if quick else "gelu"):
            mistaken[name, tag] = found
    # The only name whose own sizes ask for QuickGELU without saying so.
    assert mistaken == {("roberta-ViT-B-32", "laion2b_s12b_b32k"): "quick_gelu"}


@pytest.mark.parametrize(
    ("name", "tag", "mean"),
    [("ViT-B-16", "openai", CLIP_MEAN), ("ViT-L-14", "laion2b_s32b_b82k", (0.5, 0.5, 0.5))],
)
def test_mean_and_interpolation_follow_the_tag(served, name, tag, mean):
    model = TFCLIP.from_clip(name, tag, backbone_options={**TINY_CLIP, "patch_size": 16})
    assert model.config.mean == mean
    assert model.config.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("name", "tag", "changes", "message"),
    [
        ("ViT-B-16", "openai", {"activation": "gelu"}, "activation must be 'quick_gelu'"),
        ("ViT-B-16", "laion2b_s34b_b88k", {"activation": "quick_gelu"}, "must be 'gelu'"),
        ("ViT-B-16", "opnai", {}, "tag of 'ViT-B-16', got 'opnai'; its tags are .*'openai'"),
        ("ViT-B-16", "absent.pt", {}, "must be a file or a tag"),
        ("ViT-B-17", "openai", {}, "'ViT-B-17' is unknown: .*'ViT-B-16'"),
        ("ViT-B-16-SigLIP", "webli", {}, "name it 'timm:vit_base_patch16_siglip_224'"),
        ("ViT-B-16", "openai", {"frame_size": (8, 8)}, "frame_size"),
        ("ViT-B-16", "openai", {"frames": 8}, "unexpected keyword|unknown config keys"),
    ],
)
def test_what_does_not_fit_a_tag_is_refused_before_anything_is_downloaded(
    served, name, tag, changes, message
):
    with pytest.raises((ConfigError, TypeError), match=message):
        TFCLIP.from_clip(name, tag, **{"backbone_options": TINY_CLIP, **changes})
    assert not served


@pytest.mark.parametrize("reason", [OSError("no route\nto host"), RuntimeError("checksum")])
def test_a_failed_download_is_one_sentence(monkeypatch, reason):
    def fail(_: Any) -> None:
        raise reason

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", fail)
    with pytest.raises(WeightsError, match="'openai' of 'ViT-B-16' could not be down") as error:
        TFCLIP.from_clip("ViT-B-16", "openai", backbone_options=TINY_CLIP)
    assert "\n" not in str(error.value)


# --- timm's tags -------------------------------------------------------------------------------


def serve_timm(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> dict[str, Tensor]:
    """Answer timm's next download with random weights of this model, and return them."""
    tower = timm.create_model(name, **{**TINY_TIMM, **options})
    for parameter in tower.parameters():
        nn.init.normal_(parameter)
    weights = dict(tower.state_dict())

    def load(*_: Any, **__: Any) -> dict[str, Tensor]:
        return dict(weights)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return weights


@pytest.mark.parametrize(
    ("name", "tag", "projected"),
    [
        ("vit_base_patch16_clip_quickgelu_224", "openai", 512),
        # The default tag of this name is tuned on labels, this one is not.
        ("vit_base_patch16_clip_224", "laion2b", 512),
        ("vit_base_patch16_clip_224", "laion2b_ft_in1k", 64),
        ("vit_small_patch14_reg4_dinov2", "lvd142m", 64),
        ("vit_tiny_patch16_224", "augreg_in21k", 64),
    ],
)
def test_a_timm_tag_gives_the_tower_of_its_weights(monkeypatch, tmp_path, name, tag, projected):
    weights = serve_timm(monkeypatch, f"{name}.{tag}", img_size=(64, 32))
    model = TFCLIP.from_clip(f"timm:{name}", tag, backbone_options=TINY_TIMM, frame_size=(64, 32))
    assert model.backbone.projected_width == projected
    known = timm.get_pretrained_cfg(f"{name}.{tag}")
    assert known is not None
    assert (model.config.mean, model.config.std) == (known.mean, known.std)
    state = model.backbone.tower.state_dict()
    if projected == 64:  # no projection, so a classifier of labels is dropped
        weights = {n: x for n, x in weights.items() if not n.startswith("head.")}
    torch.testing.assert_close(dict(state), weights, atol=0, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = TFCLIP.from_pretrained(tmp_path)
    frames = torch.randn(1, 2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(frames), model(frames))


def test_timm_weights_that_lack_a_tensor_are_refused(monkeypatch):
    weights = serve_timm(monkeypatch, "vit_tiny_patch16_224.augreg_in21k", img_size=(64, 32))
    del weights["blocks.0.attn.qkv.weight"]
    with pytest.raises(WeightsError, match="could not be"):
        TFCLIP.from_clip(
            "timm:vit_tiny_patch16_224",
            "augreg_in21k",
            backbone_options=TINY_TIMM,
            frame_size=(64, 32),
        )


@pytest.mark.parametrize(
    ("name", "tag", "changes", "message"),
    [
        (
            "vit_base_patch16_clip_224",
            "openai",
            {},
            "trained with QuickGELU; name it 'timm:vit_base_patch16_clip_quickgelu_224'",
        ),
        ("vit_tiny_patch16_dinov2", "openai", {}, "is unknown.*'timm:vit_"),
        ("vit_small_patch14_reg4_dinov2", "openai", {}, r"its tags are \['lvd142m'\]"),
        ("vit_base_patch16_clip_224.laion2b", "openai", {}, "pretrained must be a tag of"),
        ("vit_small_patch14_reg4_dinov2", "lvd142m", {"activation": "gelu"}, "activation must"),
        (
            "vit_small_patch14_reg4_dinov2",
            "lvd142m",
            {"backbone_options": {"wings": 2}},
            "wings",
        ),
    ],
)
def test_what_does_not_fit_timm_is_refused_before_anything_is_downloaded(
    name, tag, changes, message
):
    with pytest.raises(ConfigError, match=message):
        TFCLIP.from_clip(f"timm:{name}", tag, **changes)


def test_a_tag_in_the_name_of_a_random_backbone_must_exist():
    with pytest.raises(ConfigError, match=r"its tags are \['lvd142m'\]"):
        build_backbone(TFCLIPConfig(backbone="timm:vit_small_patch14_reg4_dinov2.openai"))
