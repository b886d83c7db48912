"""What is encoded once is not encoded again, and nothing else is taken for it."""

import os

import pytest
import torch

from tests.evaluation.literally import draw, refuse
from tfclip import TFCLIP, groups
from tfclip.data import own_dataset
from tfclip.evaluation import evaluate_model


def test_a_second_run_encodes_nothing_and_gives_the_same_report(
    tiny_model, dataset, tmp_path, monkeypatch
):
    settings = {"frames": ("dense", "rrs"), "use_cameras": "both", "cache": tmp_path / "cache"}
    first = evaluate_model(tiny_model, dataset, **settings)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    monkeypatch.setattr(groups.GroupEncoder, "encode", refuse)
    again = evaluate_model(tiny_model, dataset, model_name="moved", **settings)
    assert again.to_dict()["rows"] == first.to_dict()["rows"]
    with pytest.raises(AssertionError, match="something was encoded"):
        evaluate_model(tiny_model, dataset, frames="all", cache=tmp_path / "cache")


def test_a_touched_file_or_another_model_is_encoded_anew(tiny_config, tmp_path, monkeypatch):
    tracklets = draw(tmp_path / "people", 2)
    dataset = own_dataset(tracklets)
    models = [TFCLIP(tiny_config).eval() for _ in range(2)]
    settings = {"cache": tmp_path / "cache"}
    evaluate_model(models[0], dataset, **settings)
    monkeypatch.setattr(groups.GroupEncoder, "encode", refuse)
    evaluate_model(models[0], dataset, **settings)
    with pytest.raises(AssertionError, match="something was encoded"):
        evaluate_model(models[1], dataset, **settings)
    with pytest.raises(AssertionError, match="something was encoded"):
        evaluate_model(models[0].to(torch.bfloat16), dataset, **settings)
    models[0].to(torch.float32)
    os.utime(tracklets[3].frames[0], ns=(1, 1))
    with pytest.raises(AssertionError, match="something was encoded"):
        evaluate_model(models[0], dataset, **settings)


def test_a_damaged_file_of_the_cache_is_made_anew(tiny_model, dataset, tmp_path, caplog):
    first = evaluate_model(tiny_model, dataset, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = evaluate_model(tiny_model, dataset, cache=tmp_path)
    assert again.to_dict() == first.to_dict()
    assert path.read_bytes() == whole
    assert "encoding again what a damaged file held" in caplog.text


def test_an_interrupted_run_goes_on_where_it_was(tiny_model, dataset, tmp_path, monkeypatch):
    expected = evaluate_model(tiny_model, dataset)
    monkeypatch.setattr(groups, "GROUP_FRAMES", 10)
    whole, counts, stop = groups.GroupEncoder.encode, [], [3]

    def interrupted(self, *arguments):
        for encoded in whole(self, *arguments):
            if len(counts) in stop:
                raise KeyboardInterrupt
            counts.append(len(encoded[0]))
            yield encoded

    monkeypatch.setattr(groups.GroupEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(tiny_model, dataset, cache=tmp_path)
    finished = sum(counts)
    assert 0 < finished < 21
    del counts[:], stop[:]
    report = evaluate_model(tiny_model, dataset, cache=tmp_path)
    assert sum(counts) == 21 - finished
    assert report.rows[0].result.mAP == pytest.approx(expected.rows[0].result.mAP, abs=1e-12)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
