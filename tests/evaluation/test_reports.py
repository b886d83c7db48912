"""Reports as JSON, text, Markdown, tables and pages."""

import csv
import json
import math
from pathlib import Path

import pytest

from tests.evaluation.literally import scores_of
from tests.pages import read_page
from tfclip.data import own_dataset
from tfclip.evaluation import evaluate_model, write_page, write_report

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


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
    page, tags, sources = read_page(tmp_path / "report.html")
    assert not {"script", "link", "iframe", "a", "b"} & set(tags)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "&lt;b&gt;|tiny" in page
    assert f"{report.rows[0].result.mAP:.2%}" in page
    assert "://" not in page
