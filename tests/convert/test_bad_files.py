"""Files that are refused: whole, in one sentence, and never run."""

from __future__ import annotations

import errno
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.convert.checkpoint_files import one_sentence, save_scripted, scripting
from tests.recorded import read_golden
from tests.traps import Bomb
from tfclip import convert
from tfclip.errors import ConfigError, WeightsError


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
