"""Evaluating a model on a data set: figures, cache, splits, thresholds, reports."""

import csv
import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tfclip import TFCLIP, functional, groups
from tfclip.data import (
    Dataset,
    Protocol,
    SyntheticTracklets,
    model_fingerprint,
    own_dataset,
    read_folder,
)
from tfclip.errors import ConfigError, FrameError, SaveError, TableError
from tfclip.evaluation import (
    EvaluationRow,
    evaluate_model,
    fit_on_training,
    save_calibrated,
    write_page,
    write_report,
)
from tfclip.functional import (
    QueryScores,
    bootstrap_interval,
    equal_error_rate,
    evaluate_ranking,
    fit_threshold,
    pair_scores,
    tpr_at_fpr,
)

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
LAYOUT = "{person}/{camera}/{tracklet}"


def draw(folder, identities, first=0):
    people = SyntheticTracklets(
        identities, 3, 1, num_frames=(1, 9), frame_size=(48, 24), seed=1, first_identity=first
    )
    people.write(folder)
    return read_folder(folder, LAYOUT)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Seven drawn persons in three cameras."""
    return draw(tmp_path_factory.mktemp("people"), 7)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Five others."""
    return draw(tmp_path_factory.mktemp("others"), 5, first=7)


@pytest.fixture(scope="module")
def trained():
    """A model that knows one person from another."""
    return TFCLIP.from_pretrained("tfclip-tiny")


@pytest.fixture
def dataset(people, others):
    """Queries of camera 0, searched in one another and in the rest."""
    queries = [tracklet for tracklet in people if tracklet.camera == 0]
    gallery = [tracklet for tracklet in people if tracklet.camera != 0]
    return own_dataset(queries, gallery, train=others, name="drawn")


def encode(model, tracklets, sampling="dense", cameras=False):
    """Encode each tracklet alone."""
    return torch.stack(
        [
            model.encode_sequence(t.open(), t.camera if cameras else None, sampling=sampling)
            for t in tracklets
        ]
    )


def distances(queries, gallery):
    """Return squared Euclidean distances, read literally."""
    return torch.stack([torch.stack([(q - g).square().sum() for g in gallery]) for q in queries])


def labels(queries, gallery):
    return (
        [t.person for t in queries],
        [t.person for t in gallery],
        [t.camera for t in queries],
        [t.camera for t in gallery],
    )


def scores_of(row: EvaluationRow) -> QueryScores:
    scores = row.splits[0].per_query
    assert scores is not None
    return scores


def refuse(*arguments, **options):
    raise AssertionError("something was encoded")


# --- figures -------------------------------------------------------------------------------------


def test_the_figures_are_those_of_tracklets_encoded_one_by_one(tiny_model, dataset):
    report = evaluate_model(tiny_model, dataset, frames=("dense", "rrs", "all"), use_cameras="both")
    assert [row.name for row in report.rows] == [
        "dense",
        "dense, cameras",
        "rrs",
        "rrs, cameras",
        "all",
        "all, cameras",
    ]
    (split,) = dataset.protocol().splits
    queries = [dataset.test[row] for row in split.query]
    gallery = [dataset.test[row] for row in split.gallery]
    told = labels(queries, gallery)
    for row in report.rows:
        settings = row.frames, row.cameras
        distance = distances(
            encode(tiny_model, queries, *settings), encode(tiny_model, gallery, *settings)
        )
        expected = evaluate_ranking(distance, *told)
        result = row.result
        assert result.mAP == pytest.approx(expected.mAP, abs=1e-12)
        assert result.cmc.equal(expected.cmc)
        assert result.mINP == pytest.approx(expected.mINP, abs=1e-12)
        assert result.protocol == f"{expected.protocol}; squared Euclidean distance"
        assert (result.num_valid_queries, result.num_queries) == (7, 7)
        assert row.interval("mAP") == pytest.approx(expected.interval("mAP"))
        assert row.interval("rank1") == pytest.approx(expected.interval("rank1"))
        pairs = pair_scores(distance, *told)
        assert row.verification.equal_error_rate == pytest.approx(equal_error_rate(*pairs))
        assert row.verification.true_match_rates[1e-2] == tpr_at_fpr(*pairs, 1e-2)
        assert row.verification.too_few_pairs_for == (1e-3,)
        assert row.verification.num_same == 14
        assert row.verification.num_different == 7 * 18
        assert row.num_tracklets == 21
        assert row.num_frames == sum(len(t.frames) for t in dataset.test)
    assert report.rows[0].result.mAP != report.rows[1].result.mAP
    assert report.fingerprint == model_fingerprint(tiny_model)


def test_only_what_the_protocol_needs_is_encoded_and_its_rules_are_the_default(
    tiny_model, people, tmp_path
):
    missing = dataclasses.replace(people[0], name="gone", frames=(str(tmp_path / "gone.png"),))
    test = (missing, *people)
    rows = tuple(range(1, len(test)))
    protocol = Protocol(
        name="p",
        query=rows[:2],
        gallery=rows,
        description="d",
        frames="rrs",
        ap="trapezoid",
        exclude="camera",
        junk=("0006",),
    )
    report = evaluate_model(
        tiny_model,
        Dataset(name="d", root="d", train=(), test=test, protocols={"p": protocol}),
    )
    (row,) = report.rows
    assert (row.frames, row.cameras, row.num_tracklets) == ("rrs", False, len(people))
    features = encode(tiny_model, people, "rrs")
    expected = evaluate_ranking(
        distances(features[:2], features),
        *labels(people[:2], people),
        ap="trapezoid",
        exclude="camera",
        junk_ids=["0006"],
    )
    assert row.result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert "AP by trapezoid" in row.result.protocol
    assert "3 rows of junk persons" in row.result.protocol


def test_without_cameras_a_query_never_finds_itself(tiny_model, people):
    unknown = [dataclasses.replace(t, camera=None) for t in people]
    dataset = own_dataset(unknown, exclude="none")
    (row,) = evaluate_model(tiny_model, dataset).rows
    features = encode(tiny_model, people)
    ranks = []
    for query, features_of_query in enumerate(features):
        order = sorted(
            (g for g in range(len(people)) if g != query),
            key=lambda g: float((features[g] - features_of_query).square().sum()),
        )
        right = [people[g].person == people[query].person for g in order]
        ranks.append(right.index(True) + 1)
    assert scores_of(row).first_match.tolist() == ranks
    assert row.verification.num_same == len(people) * 2


def test_splits_are_averaged_whatever_their_sizes(tiny_model, people):
    rows = tuple(range(len(people)))
    splits = [(rows[:3], rows), (rows[5:9], rows[2:20]), (rows[:3], rows[:12])]

    def with_splits(*chosen):
        (query, gallery), *repeats = chosen
        protocol = Protocol(
            name="p", query=query, gallery=gallery, description="", repeats=tuple(repeats)
        )
        return Dataset(name="d", root="d", train=(), test=tuple(people), protocols={"p": protocol})

    report = evaluate_model(tiny_model, with_splits(*splits))
    alone = [evaluate_model(tiny_model, with_splits(split)).rows[0] for split in splits]
    (row,) = report.rows
    result = row.result
    assert result.mAP == pytest.approx(np.mean([each.result.mAP for each in alone]))
    assert result.mINP == pytest.approx(np.mean([each.result.mINP for each in alone]))
    for k in (1, 5, 10, 20):
        assert result.rank(k) == pytest.approx(np.mean([each.result.rank(k) for each in alone]))
    assert result.num_queries == 10
    assert result.protocol.startswith("mean of 3 splits, the first: 3 of 3 queries")
    rates = [each.verification.equal_error_rate or 0.0 for each in alone]
    assert row.verification.equal_error_rate == pytest.approx(np.mean(rates))
    assert row.verification.num_same == sum(each.verification.num_same for each in alone)
    values = [scores_of(each).average_precision for each in alone]
    weighted = torch.cat([value * 10 / (3 * len(value)) for value in values])
    assert float(weighted.mean()) == pytest.approx(result.mAP)
    assert row.interval("mAP") == pytest.approx(bootstrap_interval(weighted))
    assert [line["split"] for line in report.per_query()] == [0] * 3 + [1] * 4 + [2] * 3


def test_a_reranked_row_stands_below_its_plain_one_and_never_instead(
    tiny_model, dataset, monkeypatch
):
    calls = []

    def rerank(queries, gallery, k1, k2, lambda_value):
        calls.append((k1, k2, lambda_value))
        return -functional.squared_euclidean_distance(queries, gallery)  # the farthest first

    monkeypatch.setattr(functional, "k_reciprocal_rerank", rerank, raising=False)
    report = evaluate_model(tiny_model, dataset, frames=("dense", "rrs"), rerank=True)
    assert [row.name for row in report.rows] == [
        "dense",
        "dense, re-ranked",
        "rrs",
        "rrs, re-ranked",
    ]
    assert calls == [(20, 6, 0.3)] * 2
    plain, reranked = report.rows[:2]
    assert plain.result.mAP == evaluate_model(tiny_model, dataset).rows[0].result.mAP
    queries, gallery = (
        [dataset.test[row] for row in rows] for rows in dataset.protocol().splits[0]
    )
    distance = -distances(encode(tiny_model, queries), encode(tiny_model, gallery))
    expected = evaluate_ranking(distance, *labels(queries, gallery))
    assert reranked.result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert "k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)" in reranked.result.protocol
    assert "re-ranking" not in plain.result.protocol


def test_reranking_is_that_of_the_matrix(tiny_model, dataset):
    report = evaluate_model(tiny_model, dataset, rerank=True)
    (split,) = dataset.protocol().splits
    queries = [dataset.test[row] for row in split.query]
    gallery = [dataset.test[row] for row in split.gallery]
    rerank = vars(functional)["k_reciprocal_rerank"]
    distance = rerank(encode(tiny_model, queries), encode(tiny_model, gallery))
    expected = evaluate_ranking(distance, *labels(queries, gallery))
    assert report.rows[1].result.mAP == pytest.approx(expected.mAP, abs=1e-6)


# --- cache ---------------------------------------------------------------------------------------


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


# --- refusals ------------------------------------------------------------------------------------


def test_wrong_choices_are_refused_before_anything_is_encoded(
    tiny_model, tiny_config, dataset, people, monkeypatch
):
    monkeypatch.setattr(groups.GroupEncoder, "encode", refuse)
    choices: tuple[tuple[dict[str, Any], str], ...] = (
        ({"protocol": "official"}, "protocol of drawn must be one of"),
        ({"frames": "some"}, "frames must be some of"),
        ({"frames": ()}, "frames must be some of"),
        ({"frames": ("rrs", "rrs")}, "each once"),
        ({"use_cameras": "all"}, "use_cameras must be True, False or 'both', got 'all'"),
    )
    for options, message in choices:
        with pytest.raises(ValueError, match=message):
            evaluate_model(tiny_model, dataset, **options)
    without = TFCLIP(tiny_config.replace(num_cameras=0)).eval()
    with pytest.raises(ValueError, match="this one has none"):
        evaluate_model(without, dataset, use_cameras="both")
    few = TFCLIP(tiny_config.replace(num_cameras=2)).eval()
    with pytest.raises(TableError, match="is of camera 2; the model knows cameras 0 to 1"):
        evaluate_model(few, dataset, use_cameras=True)


def test_a_tracklet_of_unknown_labels_is_named(tiny_model, people):
    protocol = Protocol(name="p", query=[0], gallery=[1, 2], description="")
    for field, message in (
        ("person", "not known whom tracklet '0000/2/0' shows"),
        ("camera", "the camera of tracklet '0000/2/0' is not known"),
    ):
        test = (*people[:2], dataclasses.replace(people[2], **{field: None}))
        dataset = Dataset(name="d", root="d", train=(), test=test, protocols={"p": protocol})
        with pytest.raises(TableError, match=message):
            evaluate_model(tiny_model, dataset)


def test_frames_that_are_gone_are_named(tiny_model, people, tmp_path):
    text = tmp_path / "no.png"
    text.write_text("no image")
    broken = dataclasses.replace(people[1], frames=(str(text),))
    with pytest.raises(FrameError, match=re.escape(str(text))):
        evaluate_model(tiny_model, own_dataset([people[0], broken]))


# --- own data ------------------------------------------------------------------------------------


def test_a_tracklet_that_is_query_and_gallery_is_taken_once(people):
    dataset = own_dataset(people[:2], people[1:4])
    assert [t.name for t in dataset.test] == [
        "query/0000/0/0",
        "query/0000/1/0",
        "gallery/0000/2/0",
        "gallery/0001/0/0",
    ]
    assert dataset.protocol().gallery == (0, 1, 2, 3)
    apart = own_dataset(people[:2], [people[1], *people[1:4]], queries_in_gallery=False)
    assert apart.protocol().gallery == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda p: {"queries": []}, "at least one query"),
        (lambda p: {"queries": p, "queries_in_gallery": False}, "something to search in"),
        (
            lambda p: {"queries": p, "train": p[:1]},
            "person '0000' is in the training tracklets and in the others",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, person=None) for t in p]},
            "not known whom tracklet '0000/0/0' shows",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, camera=None) for t in p]},
            "the camera of tracklet '0000/0/0' is not known",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, camera=4) for t in p]},
            "every tracklet is of camera 4",
        ),
    ],
)
def test_own_data_that_cannot_be_evaluated_is_refused(people, arguments, message):
    with pytest.raises(TableError, match=message):
        own_dataset(**arguments(people))


# --- thresholds ----------------------------------------------------------------------------------


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


# --- reports -------------------------------------------------------------------------------------


@pytest.fixture
def report(tiny_model, dataset):
    return evaluate_model(
        tiny_model, dataset, frames=("dense", "rrs"), model_name="<b>|tiny", revision="abc"
    )


def test_the_keys_of_the_json_are_those_that_the_docs_list(report):
    values = json.loads(report.to_json())
    assert values == report.to_dict()
    assert values["schema_version"] == 1
    docs = DOCS.read_text(encoding="utf-8")
    for keys in (values, values["protocol"], values["model"], values["rows"][0]):
        for key in keys:
            assert f"`{key}`" in docs, key


def test_a_report_reads_as_text_and_as_markdown(report):
    text, markdown = str(report), report.to_markdown()
    result = report.rows[1].result
    for form in (text, markdown):
        assert "drawn, protocol own" in form
        assert f"fingerprint {report.fingerprint}" in form
        assert " at abc" in form
        assert result.protocol in form
        assert "too few pairs of two persons to measure an FPR of 0.001" in form
    line = next(line for line in text.splitlines() if line.startswith("rrs "))
    assert line.split()[1] == f"{result.mAP:.2%}"
    assert line.endswith("7 of 7")
    low, high = report.rows[1].interval("mAP")
    assert f"| rrs | {result.mAP:.2%} | {low * 100:.1f} - {high * 100:.1f} |" in markdown


def test_each_query_stands_in_the_table_with_what_it_gave(report, dataset, tmp_path):
    write_report(report, tmp_path / "out", threshold=0.1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json",
        "report.md",
        "per_query.csv",
        "cmc.png",
        "roc.png",
        "distances.png",
    }
    with (tmp_path / "out" / "per_query.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 14
    assert [line["row"] for line in lines] == ["dense"] * 7 + ["rrs"] * 7
    scores = scores_of(report.rows[1])
    for line, query, ap, first in zip(
        lines[7:],
        dataset.test,
        scores.average_precision.tolist(),
        scores.first_match.tolist(),
        strict=False,
    ):
        assert (line["name"], line["person"]) == (query.name, query.person)
        assert (line["camera"], line["num_matches"]) == ("0", "2")
        assert float(line["average_precision"]) == ap
        assert int(line["first_rank"]) == first


def test_a_skipped_query_has_empty_cells(tiny_model, people):
    dataset = own_dataset(people[:2], [people[2], *people[4:6]], queries_in_gallery=False)
    lonely = own_dataset([*people[:1], people[3]], people[1:3], queries_in_gallery=False)
    assert all(line["num_matches"] for line in evaluate_model(tiny_model, dataset).per_query())
    first, second = evaluate_model(tiny_model, lonely).per_query()
    assert (first["num_matches"], second["num_matches"]) == (2, 0)
    assert second["average_precision"] is None
    assert second["first_rank"] is None


def test_a_gallery_without_other_persons_has_no_error_rate(tiny_model, people):
    report = evaluate_model(tiny_model, own_dataset(people[:3]))
    (row,) = report.rows
    assert row.verification.equal_error_rate is None
    assert row.verification.too_few_pairs_for == (1e-2, 1e-3)
    assert math.isclose(row.result.mAP, 1)
    assert "measure an FPR of 0.001 and 0.01" in str(report)
    json.loads(report.to_json())


def test_the_page_needs_nothing_else_and_escapes_names(report, tmp_path):
    write_page(report, tmp_path / "report.html", threshold=0.1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags, sources = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            sources.extend(value for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert not {"script", "link", "iframe", "a", "b"} & set(tags)
    assert len(sources) == 3
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "&lt;b&gt;|tiny" in page
    assert f"{report.rows[0].result.mAP:.2%}" in page
    assert "://" not in page
