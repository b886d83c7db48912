import errno
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip.data import EmbeddingTable, SyntheticTracklets, Thumbnail, search_table
from tfclip.errors import MissingExtraError, SaveError
from tfclip.functional import evaluate_ranking
from tfclip.visualize import (
    Shown,
    cmc_curves,
    contact_sheet,
    distance_histogram,
    draw_search,
    ranked_list,
    save_figure,
)


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

    def full_disk(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

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
