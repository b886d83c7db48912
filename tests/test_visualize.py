import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pages import read_page
from tests.traps import full_disk
from tfclip.data import EmbeddingTable, SyntheticTracklets, Thumbnail, search_table
from tfclip.errors import MissingExtraError, SaveError
from tfclip.functional import Pairs, evaluate_ranking
from tfclip.temporal_attention import Look
from tfclip.visualize import (
    Shown,
    attention_overlay,
    cmc_curves,
    contact_sheet,
    distance_histogram,
    draw_search,
    embedding_map,
    project,
    ranked_cards,
    ranked_list,
    roc_curves,
    save_figure,
    write_search_page,
)
from tfclip.visualize.maps import _PERPLEXITY, _neighbour_shares


def picture(value=0, height=64, width=32):
    return np.full((height, width, 3), value, dtype=np.uint8)


def render(figure):
    """Return the pixels of a figure, (H, W, 3)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def frames_around(figure):
    """Return the colour of the frames drawn around pictures, and whether they are dashed."""
    from matplotlib.colors import to_hex

    (axes,) = figure.axes
    patches = [patch for patch in axes.patches if not patch.get_fill()]
    return [
        (to_hex(patch.get_edgecolor()), patch.get_linestyle() != "solid")
        for patch in patches
        if patch.get_zorder() == 2
    ]


def test_right_is_green_wrong_is_red_unknown_is_grey_and_the_same_camera_is_dashed():
    query = Shown(picture=picture(), person="7", camera=0)
    results = [
        Shown(picture=picture(), person=7, camera=1, distance=0.1),
        Shown(picture=picture(), person="8", camera=0, distance=0.2),
        Shown(picture=picture(), camera=1, distance=0.3),
    ]
    _, right, wrong, unknown = frames_around(ranked_list([(query, results)]))
    assert right == ("#1a8f4c", False)
    assert wrong == ("#d1362b", True)
    assert unknown == ("#a0a7af", False)


def test_distances_cameras_and_names_stand_under_the_pictures():
    query = Shown(picture=picture(), person=7, camera=0)
    result = Shown(picture=None, person=7, camera=3, distance=0.12345, label="$a_1$ of a long name")
    written = texts(ranked_list([(query, [result])], title="Title"))
    assert "Title" in written
    assert "person 7" in written
    assert "0.123  ·  cam 3" in written
    assert "…1$ of a long name" in written  # no formula is made of it
    assert "no picture" in written
    assert "squared distance: smaller is nearer" in written


def test_the_legend_explains_only_what_is_there():
    query = Shown(picture=picture(), person=1)
    written = texts(ranked_list([(query, [Shown(picture=picture(), person=1, distance=0.0)])]))
    assert "same person" in written
    assert "other person" not in written
    assert "same camera" not in written


def test_pictures_are_drawn_and_keep_their_proportions():
    query = Shown(picture=picture(0), person=1)
    result = Shown(picture=picture(40, height=100, width=20), person=2, distance=1.0)
    pixels = render(ranked_list([(query, [result])])).astype(int)
    grey = np.abs(pixels - 40).max(2) < 3
    rows, columns = np.nonzero(grey)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height / width == pytest.approx(5, rel=0.1)


def test_rows_may_have_different_numbers_of_results():
    query = Shown(picture=picture(), person=1)
    one = Shown(picture=picture(), person=1, distance=0.0)
    pixels = render(ranked_list([(query, []), (query, [one, one, one])]))
    assert pixels.shape[0] > pixels.shape[1] / 2


def test_a_contact_sheet_has_a_place_for_every_frame():
    people = SyntheticTracklets(1, 1, 1, num_frames=7, frame_size=(64, 32))
    figure = contact_sheet(people[0].frames, columns=4, title="7/0/0")
    assert len(figure.axes[0].images) == 7
    assert texts(figure)[-7:] == [str(number) for number in range(1, 8)]
    assert contact_sheet([picture()], labels=["x"]).axes[0].texts[-1].get_text() == "x"


def test_a_search_is_drawn_from_where_its_pictures_lie(tmp_path):
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture(number * 50)).save(paths[-1])
    table = EmbeddingTable(
        embeddings=torch.eye(3),
        names=("a", "b", "c"),
        persons=("x", "x", None),
        cameras=(0, 1, 1),
        thumbnails=tuple(Thumbnail(path=path) for path in paths),
    )
    figure = draw_search(table, table, search_table(table, table))
    assert len(figure.axes[0].images) == 9
    assert [color for color, _ in frames_around(figure)][1:3] == ["#1a8f4c", "#a0a7af"]


def test_pyplot_is_left_alone():
    before = "matplotlib.pyplot" in sys.modules
    ranked_list([(Shown(picture=picture()), [])])
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".svg", ".pdf"])
def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"sheet{suffix}"
    figure = contact_sheet([np.zeros((20, 10, 3), dtype=np.uint8)])
    save_figure(figure, path)
    before = path.read_bytes()
    assert len(before) > 500

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(SaveError, match="No space left on device"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="rows must have at least one query"):
        ranked_list([])
    with pytest.raises(ValueError, match="got 0 frames"):
        contact_sheet([])
    with pytest.raises(ValueError, match="labels must be 1, one for each frame, got 2"):
        contact_sheet([picture()], labels=["a", "b"])


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[viz\]'"):
        contact_sheet([picture()])


def test_a_curve_goes_through_the_measured_shares_and_says_whose_it_is():
    distance = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2]])
    result = evaluate_ranking(distance, [1, 2], [1, 2, 3], [0, 0], [1, 1, 1])  # at ranks 1 and 3
    figure = cmc_curves({"a": result, "$b$": result}, title="Curves")
    (axes,) = figure.axes
    for line in axes.lines:
        assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3]
        assert np.asarray(line.get_ydata()).tolist() == [0.5, 0.5, 1.0]
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a: mAP 66.7%, rank-1 50.0%", "$b$: mAP 66.7%, rank-1 50.0%"]
    assert "2 of 2 queries" in figure.texts[-1].get_text()
    assert render(figure).std() > 1
    (short,) = cmc_curves({"a": result}, max_rank=2).axes
    assert np.asarray(short.lines[0].get_xdata()).tolist() == [1, 2]


def test_curves_of_nothing_are_refused():
    with pytest.raises(ValueError, match="results and max_rank must be at least one"):
        cmc_curves({})


def test_more_lines_than_colours_differ_by_their_dashes():
    distance = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2]])
    result = evaluate_ranking(distance, [1, 2], [1, 2, 3], [0, 0], [1, 1, 1])
    (axes,) = cmc_curves({str(number): result for number in range(12)}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) >= 10
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 12


def test_a_histogram_shows_the_share_of_each_kind_and_what_a_threshold_lets_in():
    distance = torch.tensor([0.0, 0.1, 0.1, 0.9, 0.25, 0.8, 0.9, 1.0])
    same = torch.tensor([True, True, True, True, False, False, False, False])
    figure = distance_histogram(distance, same, threshold=0.25, bins=2, title="$x$", note="small")
    (axes,) = figure.axes
    heights = [stairs.get_data().values.tolist() for stairs in axes.patches]  # pyright: ignore
    assert heights == [[0.75, 0.25], [0.25, 0.75]]  # below and above 0.5
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "4 pairs of one person",
        "4 pairs of two persons",
        "threshold 0.25: within it 75.0% of one person, 25.00% of two",
    ]
    assert [text.get_text() for text in figure.texts] == ["$x$", "small"]
    assert render(figure).std() > 1


def test_a_histogram_of_equal_distances_can_be_drawn():
    figure = distance_histogram(torch.zeros(2), torch.tensor([True, False]), bins=1)
    assert [stairs.get_data().values.tolist() for stairs in figure.axes[0].patches] == [[1], [1]]  # pyright: ignore


@pytest.mark.parametrize(
    ("distance", "same", "bins", "message"),
    [
        ([0.1, 0.2], [True, True], 5, "none of two persons"),
        ([0.1], [True, False], 5, r"must both be \(M,\)"),
        ([0.1, float("nan")], [True, False], 5, "must be finite"),
        ([0.1, 0.2], [True, False], 0, "bins must be at least 1, got 0"),
    ],
)
def test_a_histogram_of_what_are_no_pairs_is_refused(distance, same, bins, message):
    with pytest.raises(ValueError, match=message):
        distance_histogram(torch.tensor(distance), torch.tensor(same), bins=bins)


# --- curves of pairs -----------------------------------------------------------------------------


def test_a_roc_curve_goes_through_every_threshold_and_says_its_rates():
    distance = torch.tensor([0.1, 0.2, 0.3, 0.4])
    pairs = Pairs(distance, torch.tensor([True, False, True, False]))
    figure = roc_curves({"$a$": pairs}, title="ROC", note="small")
    (axes,) = figure.axes
    curve, chance = axes.lines
    assert np.asarray(curve.get_xdata()).tolist() == [0.1 / 1.6, 0.1 / 1.6, 0.5, 0.5, 1.0]
    assert np.asarray(curve.get_ydata()).tolist() == [0, 0.5, 0.5, 1, 1]
    assert (np.asarray(chance.get_xdata()) == np.asarray(chance.get_ydata())).all()
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["$a$: EER 50.0%", "chance"]  # too few pairs for a rate of 1 %
    assert axes.get_xscale() == "log"
    assert "small" in [text.get_text() for text in figure.texts]
    assert render(figure).std() > 1


def test_a_roc_curve_of_enough_pairs_tells_the_rate_at_one_per_cent():
    distance = torch.cat([torch.tensor([0.0, 2.0]), torch.linspace(1, 2, 100)])
    pairs = Pairs(distance, torch.tensor([True, True] + [False] * 100))
    legend = roc_curves({"a": pairs}).axes[0].get_legend()
    assert legend is not None
    assert "TPR 50.0% at FPR 1%" in legend.get_texts()[0].get_text()


def test_roc_curves_of_nothing_are_refused():
    with pytest.raises(ValueError, match="results must be at least one"):
        roc_curves({})
    with pytest.raises(ValueError, match="none of two persons"):
        roc_curves({"a": Pairs(torch.tensor([0.1]), torch.tensor([True]))})


# --- maps ----------------------------------------------------------------------------------------


def test_pca_finds_the_plane_in_which_the_points_lie():
    places = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    places *= torch.tensor([3.0, 1.0])
    turned, _ = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))
    found, shares = project(places.float() @ turned[:2] + 5)
    # Distances between points are the same; axes are those of the largest spread.
    torch.testing.assert_close(
        torch.cdist(found, found), torch.cdist(places, places), atol=1e-4, rtol=1e-4
    )
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    covariance = torch.cov(found.T)
    assert abs(float(covariance[0, 1])) < 1e-4
    assert covariance[0, 0] > covariance[1, 1]


def test_points_on_a_line_and_points_of_one_number_have_a_map():
    found, shares = project(torch.tensor([[0.0], [1.0], [2.0]]))
    assert found[:, 0].tolist() == pytest.approx([-1, 0, 1])
    assert found[:, 1].tolist() == [0, 0, 0]
    assert shares.tolist() == pytest.approx([1, 0])
    found, shares = project(torch.ones(3, 4))
    assert found.abs().max() < 1e-12
    assert shares.tolist() == [0, 0]


def test_tsne_keeps_groups_together_that_pca_cannot_show_apart():
    """Fifteen groups stand along fifteen axes, of which a plane of PCA shows two."""
    groups = torch.arange(15).repeat_interleave(12)
    random = torch.Generator().manual_seed(0)
    points = 4 * torch.eye(15)[groups] + 0.3 * torch.randn(180, 15, generator=random)

    def worst_ratio(places):
        """Return the largest distance within a group over the smallest between two."""
        distance = torch.cdist(places, places)
        same = groups[:, None] == groups
        return float(distance[same].max() / distance[~same].min())

    found, shares = project(points, "tsne")
    assert worst_ratio(found) < 1 < worst_ratio(project(points)[0])
    assert shares.isnan().all()
    assert torch.equal(found, project(points, "tsne")[0])  # drawn by lot, but the same lot


def test_tsne_gives_every_row_the_same_number_of_neighbours():
    """The definition, row by row: Gaussians of the width that gives the perplexity."""
    points = torch.randn(45, 6, generator=torch.Generator().manual_seed(0)).double()
    squared = torch.cdist(points, points).square()
    expected = torch.zeros(45, 45).double()
    for i in range(45):
        others = [j for j in range(45) if j != i]
        low, high, share = 0.0, 100.0, torch.zeros(44)
        for _ in range(80):
            middle = (low + high) / 2
            share = torch.exp(-squared[i, others] * middle)
            share /= share.sum()
            perplexity = 2 ** float(-(share * share.log2()).nan_to_num(0).sum())
            low, high = (middle, high) if perplexity > _PERPLEXITY else (low, middle)
        expected[i, others] = share
    expected = (expected + expected.T) / (2 * 45)
    torch.testing.assert_close(_neighbour_shares(squared), expected, atol=1e-9, rtol=1e-6)


def test_a_map_has_a_colour_for_each_person_and_a_shape_for_each_camera():
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    figure = embedding_map(embeddings, ["$a", "$a", "b", None, "b", "b"], [0, 1, 0, 1, 1, None])
    (axes,) = figure.axes
    sizes = [len(np.asarray(points.get_offsets())) for points in axes.collections]
    assert sorted(sizes) == [1, 2, 3]
    colors = {tuple(c) for points in axes.collections for c in points.get_facecolors().round(3)}  # pyright: ignore
    assert len(colors) == 3  # two persons, and grey
    assert [text.get_text() for text in axes.texts] == ["$a", "b"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["camera 0", "camera 1"]
    assert "1 of unknown ones in grey" in figure.texts[-1].get_text()
    assert render(figure).std() > 1


@pytest.mark.parametrize(
    ("embeddings", "persons", "method", "message"),
    [
        (torch.zeros(3, 2), ["a"], "pca", "persons must be 3, one for each row"),
        (torch.zeros(1, 2), ["a"], "pca", "at least two rows"),
        (torch.zeros(2, 2), ["a", "b"], "umap", "method must be one of"),
        (
            torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]),
            ["a", "b"],
            "pca",
            "finite, got .* row 1",
        ),
    ],
)
def test_a_map_of_what_has_no_places_is_refused(embeddings, persons, method, message):
    with pytest.raises(ValueError, match=message):
        embedding_map(embeddings, persons, method=method)


# --- what the temporal memory looked at ----------------------------------------------------------


def look(shares, frame_shares=(0.25, 0.75)):
    count = len(frame_shares)
    return Look(
        pictures=tuple(picture(90) for _ in range(count)),
        indices=tuple(range(0, 5 * count, 5)),
        frame_shares=torch.tensor(frame_shares),
        patch_shares=torch.as_tensor(shares, dtype=torch.float32),
        between_frames=torch.eye(count),
    )


def test_the_patch_that_was_looked_at_is_bright_and_the_bars_are_the_shares():
    shares = torch.full((2, 4, 2), 0.01)
    shares[1, 3, 1] = 0.5
    figure = attention_overlay(look(shares), title="$Looked$")
    (axes,) = figure.axes
    first, first_map, second, second_map, _ = (np.asarray(i.get_array()) for i in axes.images)
    assert (first == second).all()
    height, width = second_map.shape[:2]
    rows, columns = np.nonzero(second_map.sum(2) == second_map.sum(2).max())
    assert rows.mean() > 0.75 * height  # the last row of patches
    assert columns.mean() > 0.5 * width
    assert np.ptp(first_map.astype(int), axis=(0, 1)).max() <= 2  # looked at evenly
    bars = [bar.get_height() for bar in axes.patches if bar.get_zorder() == 1 and bar.get_fill()]  # pyright: ignore
    low, high = [height for height in bars if height > 0][-2:]
    assert high / low == pytest.approx(3)
    written = texts(figure)
    assert {"25.0%\nframe 1", "75.0%\nframe 6", "$Looked$"} <= set(written)
    assert any(text.endswith("x") for text in written)
    assert render(figure).std() > 1


def test_one_frame_looked_at_evenly_can_be_drawn():
    figure = attention_overlay(look(torch.full((1, 4, 2), 0.1), (1.0,)))
    assert "100.0%\nframe 1" in texts(figure)
    assert render(figure).std() > 1


def test_a_look_that_does_not_fit_its_frames_is_refused():
    one = look(torch.full((1, 4, 2), 0.1), (1.0,))
    with pytest.raises(ValueError, match=r"shares of its 1 frames, .* got 2 of patches"):
        attention_overlay(dataclasses.replace(one, patch_shares=torch.ones(2, 4, 2)))


# --- pages ---------------------------------------------------------------------------------------


def test_cards_say_what_a_ranked_list_says():
    query = Shown(picture=picture(), person="7", camera=0, label="asked")
    results = [
        Shown(picture=picture(), person=7, camera=0, distance=0.1),
        Shown(picture=None, person="8", camera=1, distance=0.2),
        Shown(picture=picture(), distance=0.3),
    ]
    _, right, wrong, unknown = ranked_cards(query, results).split("</figure>")[:4]
    assert 'class="tf-card tf-right tf-same-camera"' in right
    assert "<b>0.100</b> · cam 0" in right
    assert 'class="tf-card tf-wrong"' in wrong
    assert "no picture" in wrong
    assert 'class="tf-card tf-unknown"' in unknown


def test_the_page_of_a_search_needs_nothing_else_and_escapes_names(tmp_path):
    query = Shown(picture=picture(), person="<script>1</script>", label='"><b>')
    write_search_page(
        [(query, [Shown(picture=picture(), label="<a href=x>", distance=0.5)]), (query, [])],
        tmp_path / "page.html",
        title="<i>",
        facts=["<u>"],
    )
    page, tags, sources = read_page(tmp_path / "page.html")
    assert not {"script", "link", "iframe", "a", "i", "u"} & set(tags)
    assert tags.count("b") == 1  # the distance
    assert len(sources) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "://" not in page
    assert "Nothing is near enough, or left of the gallery." in page
    with pytest.raises(ValueError, match="rows must have at least one query"):
        write_search_page([], tmp_path / "none.html")
