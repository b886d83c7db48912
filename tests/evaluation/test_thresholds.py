"""Thresholds fitted on training people, and how they travel with the model."""

import dataclasses

import pytest
import torch

from tests.evaluation.literally import encode, refuse
from tfclip import TFCLIP, groups
from tfclip.data import Dataset, Protocol, model_fingerprint
from tfclip.errors import ConfigError, SaveError, TableError
from tfclip.evaluation import fit_on_training, save_calibrated
from tfclip.functional import fit_threshold


def test_a_threshold_is_fitted_on_each_pair_of_two_cameras_once(
    trained, dataset, others, monkeypatch
):
    monkeypatch.setattr("tfclip.evaluation.fitting._BLOCK_ENTRIES", 4 * len(others))
    fitted = fit_on_training(trained, dataset, 0.05)
    features = encode(trained, others)
    pairs, same = [], []
    for i, a in enumerate(others):
        for j in range(i + 1, len(others)):
            if a.camera != others[j].camera:
                pairs.append((features[i] - features[j]).square().sum())
                same.append(a.person == others[j].person)
    expected = fit_threshold(torch.stack(pairs), torch.tensor(same), false_match_rate=0.05)
    calibration = fitted.calibration
    assert calibration.threshold == pytest.approx(expected.threshold, abs=1e-5)
    assert (calibration.num_same, calibration.num_different) == (15, 60)
    assert calibration.false_non_match_rate == pytest.approx(expected.false_non_match_rate)
    assert "15 training tracklets of 5 persons of drawn" in fitted.fitted_on
    assert fitted.fingerprint == model_fingerprint(trained)


def test_of_too_many_pairs_of_two_persons_some_are_kept_and_all_of_one(
    trained, dataset, monkeypatch
):
    monkeypatch.setattr("tfclip.evaluation.fitting._MAX_DIFFERENT", 40)
    calibration = fit_on_training(trained, dataset, 0.2).calibration
    assert calibration.num_same == 15
    assert 5 < calibration.num_different < 45


def test_a_threshold_is_never_fitted_on_people_who_are_tested(trained, people, others):
    protocol = Protocol(name="p", query=[0], gallery=[1, 2], description="")

    def with_train(train):
        return Dataset(
            name="d", root="d", train=train, test=tuple(people), protocols={"p": protocol}
        )

    fitted = fit_on_training(trained, with_train((*people[:6], *others)), 0.1)
    assert "18 training tracklets of 6 persons" in fitted.fitted_on  # person 0 is tested
    for train, message in (
        ((), "d has no training tracklets"),
        (tuple(people[:3]), "every person of the training tracklets is also tested"),
        (tuple(others[::3]), "no person of the training tracklets was seen by two cameras"),
        ((dataclasses.replace(others[0], camera=None), *others[1:]), "the camera of training"),
    ):
        with pytest.raises(TableError, match=message):
            fit_on_training(trained, with_train(train), 0.1)


def test_a_rate_that_the_pairs_cannot_show_is_refused_before_anything_is_encoded(
    trained, dataset, monkeypatch
):
    monkeypatch.setattr(groups.GroupEncoder, "encode", refuse)
    with pytest.raises(ValueError, match=r"0\.001 cannot be measured with 60 pairs of two persons"):
        fit_on_training(trained, dataset, 0.001)


def test_a_threshold_travels_with_the_model(trained, dataset, tmp_path):
    trained.save_pretrained(tmp_path / "model")
    assert trained.calibration is None
    fitted = fit_on_training(trained, dataset, 0.05, frames="rrs")
    for _ in range(2):  # the second time the folder holds a model already
        save_calibrated(tmp_path / "model", tmp_path / "copy", fitted)
    loaded = TFCLIP.from_pretrained(tmp_path / "copy")
    assert loaded.calibration == fitted.calibration
    assert loaded.config.calibration["sampling"] == "rrs"
    assert loaded.config.calibration["fitted_on"] == fitted.fitted_on
    assert model_fingerprint(loaded) == model_fingerprint(trained) == fitted.fingerprint
    for name in ("model.safetensors", "README.md"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    save_calibrated(tmp_path / "model", tmp_path / "model", fitted)  # into its own folder
    assert TFCLIP.from_pretrained(tmp_path / "model").calibration == fitted.calibration
    saved = TFCLIP.from_pretrained(tmp_path / "copy")
    saved.save_pretrained(tmp_path / "again")
    assert TFCLIP.from_pretrained(tmp_path / "again").calibration == fitted.calibration
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="it is not a folder"):
        save_calibrated(tmp_path / "model", tmp_path / "file", fitted)


def test_a_calibration_whose_values_do_not_fit_is_a_config_error(trained, dataset):
    values = fit_on_training(trained, dataset, 0.05).to_dict() | {"prior": 2.0}
    model = TFCLIP(trained.config.replace(calibration=values))
    with pytest.raises(ConfigError, match="prior must be from 0 to 1"):
        _ = model.calibration
