import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.real_data import real
from tfclip.data import Tracklet, read_csv, read_folder, read_mot, read_table
from tfclip.data.readers import compile_layout
from tfclip.data.tracklets import Thumbnail, load_thumbnails
from tfclip.errors import FrameError, MissingExtraError, TableError


def draw(path, colour=0, size=(4, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)
    return path


@pytest.fixture
def table(tmp_path):
    """Write a CSV table beside two images; give its path."""
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")

    def write(text):
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def tracks(tmp_path):
    """Write a file of boxes beside a folder of three frames; give both paths."""
    for number in range(1, 4):
        draw(tmp_path / "street" / "img1" / f"{number:06d}.png", colour=number, size=(40, 30))

    def write(text):
        path = tmp_path / "boxes.txt"
        path.write_text(text)
        return tmp_path / "street" / "img1", path

    return write


# --- the record ----------------------------------------------------------------------------------


def test_a_record_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="name must be a text"):
        Tracklet(name="", frames=[])
    with pytest.raises(ValueError, match="camera must be 0 or more, got -1 for 'a'"):
        Tracklet(name="a", frames=[], camera=-1)
    with pytest.raises(ValueError, match="first_frame must not come after last_frame"):
        Tracklet(name="a", frames=[], first_frame=3, last_frame=2)
    with pytest.raises(ValueError, match="one for each of the 2 frame_indices"):
        Tracklet(name="a", frames=[], frame_indices=(0, 1), boxes=((0, 0, 1, 1),))


def test_a_tracklet_opens_its_own_frames_cut_to_its_boxes():
    recording = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(9, 1).repeat(7, 2)
    recording = np.ascontiguousarray(recording.repeat(3, 3))
    boxes = ((0, 0, 2, 3), (1, 1, 4, 5))
    tracklet = Tracklet(name="a", frames=recording, frame_indices=(1, 3), boxes=boxes)
    frames = tracklet.open()
    assert len(frames) == 2
    assert [frame.shape for frame in frames] == [(3, 2, 3), (5, 4, 3)]
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 3]
    assert [int(frame[0, 0, 0]) for frame in frames.select([1])] == [3]


def test_a_frame_beyond_the_recording_is_named_as_the_table_counts():
    recording = np.zeros((5, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(FrameError, match="has 5 frames, but frame 8 is asked for"):
        list(Tracklet(name="a", frames=recording, frame_indices=(1, 7)).open())


def test_thumbnails_come_back_in_order_and_a_lost_one_is_none(tmp_path, caplog):
    for number in range(3):
        draw(tmp_path / "frames" / f"{number}.png", colour=number)
    folder = str(tmp_path / "frames")
    pictures = load_thumbnails(
        [
            Thumbnail(path=folder, frame=2),
            None,
            Thumbnail(path=folder, frame=0, box=(1, 1, 2, 3)),
            Thumbnail(path=str(tmp_path / "gone.png")),
            Thumbnail(path=folder, frame=2),
        ]
    )
    last, none, first, gone, again = pictures
    assert none is None
    assert gone is None
    assert last is not None
    assert first is not None
    assert again is not None
    assert (last[0, 0, 0], again[0, 0, 0]) == (2, 2)
    assert first.shape == (3, 2, 3)
    assert "gone.png" in caplog.text


# --- folders -------------------------------------------------------------------------------------


def test_every_folder_of_images_is_a_tracklet_in_natural_order(tmp_path):
    for name in ("10/b.png", "2/f10.png", "2/f9.png", "2/x/a.png", "2/notes.txt", ".hid/a.png"):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("no image")
        else:
            draw(tmp_path / name)
    tracklets = read_folder(tmp_path)
    assert [tracklet.name for tracklet in tracklets] == ["2", "2/x", "10"]
    assert [Path(path).name for path in tracklets[0].frames] == ["f9.png", "f10.png"]
    assert (tracklets[0].first_frame, tracklets[0].last_frame) == (9, 10)
    assert tracklets[0].thumbnail == Thumbnail(path=str(tmp_path / "2" / "f10.png"))
    assert (tracklets[2].first_frame, tracklets[2].person, tracklets[2].camera) == (None,) * 3


def test_a_folder_that_holds_images_itself_is_one_tracklet_of_its_name(tmp_path):
    draw(tmp_path / "crops" / "1.png")
    assert [tracklet.name for tracklet in read_folder(tmp_path / "crops")] == ["crops"]


def test_a_layout_gives_person_and_camera(tmp_path):
    draw(tmp_path / "ann" / "cam2" / "0" / "1.png")
    draw(tmp_path / "bob" / "cam10" / "0" / "1.png")
    tracklets = read_folder(tmp_path, "{person}/{camera}/{tracklet}")
    assert [(t.name, t.person, t.camera) for t in tracklets] == [
        ("ann/cam2/0", "ann", 2),
        ("bob/cam10/0", "bob", 10),
    ]


def test_camera_names_count_in_the_order_given(tmp_path):
    for camera in ("north", "south"):
        draw(tmp_path / f"ann_{camera}" / "1.png")
    tracklets = read_folder(tmp_path, "{person}_{camera}", cameras=["south", "north"])
    assert [(t.person, t.camera) for t in tracklets] == [("ann", 1), ("ann", 0)]
    with pytest.raises(TableError, match="'north' does not end in a number"):
        read_folder(tmp_path, "{person}_{camera}")
    with pytest.raises(TableError, match=r"camera 'south' is not among \['north'\]"):
        read_folder(tmp_path, "{person}_{camera}", cameras=["north"])


def test_mars_names_are_recognised_and_their_cameras_count_from_zero(tmp_path):
    for name in ("0002C1T0001F002", "0002C1T0001F001", "0002C6T0001F001", "00-1C2T0003F001"):
        draw(tmp_path / "any" / f"{name}.jpg")
    tracklets = read_folder(tmp_path)
    assert [(t.name, t.person, t.camera, t.last_frame) for t in tracklets] == [
        ("00-1C2T0003", "00-1", 1, 1),
        ("0002C1T0001", "0002", 0, 2),
        ("0002C6T0001", "0002", 5, 1),
    ]
    assert Path(tracklets[1].frames[0]).name == "0002C1T0001F001.jpg"


def test_one_image_with_another_name_is_not_mars(tmp_path):
    draw(tmp_path / "0002" / "0002C1T0001F001.jpg")
    draw(tmp_path / "0002" / "cover.jpg")
    assert [tracklet.name for tracklet in read_folder(tmp_path)] == ["0002"]
    with pytest.raises(TableError, match=r"cover\.jpg is not named like an image of MARS"):
        read_folder(tmp_path, "mars")


def test_a_frame_of_mars_that_is_there_twice_is_an_error(tmp_path):
    draw(tmp_path / "train" / "0002C1T0001F001.jpg")
    draw(tmp_path / "copy" / "0002C1T0001F001.jpg")
    with pytest.raises(TableError, match="are the same frame of 0002C1T0001"):
        read_folder(tmp_path, "mars")


def test_a_folder_that_does_not_fit_the_layout_is_named(tmp_path):
    draw(tmp_path / "ann" / "1.png")
    with pytest.raises(TableError, match=r"ann does not fit the layout '\{person\}/\{camera\}'"):
        read_folder(tmp_path, "{person}/{camera}")


def test_a_folder_without_images_is_an_error_and_an_empty_one_among_others_is_said(
    tmp_path, caplog
):
    with pytest.raises(TableError, match="there is no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="has no image"):
        read_folder(tmp_path)
    draw(tmp_path / "full" / "1.png")
    assert len(read_folder(tmp_path)) == 1
    assert "without an image: 1, such as empty" in caplog.text


def test_a_link_back_up_does_not_go_round_for_ever(tmp_path):
    draw(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [tracklet.name for tracklet in read_folder(tmp_path)] == ["a"]


@pytest.mark.parametrize("layout", ["", "{persn}", "{person}/{person}", "{person", "{}/x"])
def test_a_layout_that_is_none_is_refused(layout):
    with pytest.raises(ValueError, match="layout must be"):
        compile_layout(layout)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True), st.randoms())
def test_the_order_in_which_the_disk_lists_frames_does_not_matter(tmp_path_factory, numbers, mix):
    folder = tmp_path_factory.mktemp("frames")
    shuffled = random.Random(mix.random()).sample(numbers, len(numbers))
    for number in shuffled:
        (folder / f"f{number}.jpg").touch()
    (tracklet,) = read_folder(folder)
    assert [Path(path).stem for path in tracklet.frames] == [f"f{n}" for n in sorted(numbers)]


# --- CSV -----------------------------------------------------------------------------------------


def test_a_table_gives_everything_it_knows(table):
    path = table(
        "tracklet,path,frame,person,camera,left,top,width,height\n"
        "t10,a.png,7,ann,1,0,0,2,3\n"
        "t2,b.png,1,,,,,,\n"
        "t10,b.png,5,ann,1,1,1,2,2\n"
    )
    second, tenth = read_csv(path)
    assert (second.name, second.person, second.camera, second.boxes) == ("t2", None, None, None)
    assert tenth.frames == (str(path.parent / "b.png"), str(path.parent / "a.png"))
    assert tenth.boxes == ((1, 1, 2, 2), (0, 0, 2, 3))
    assert (tenth.person, tenth.camera) == ("ann", 1)
    assert (tenth.first_frame, tenth.last_frame) == (5, 7)
    assert [frame.shape for frame in tenth.open()] == [(2, 2, 3), (3, 2, 3)]


def test_without_frame_numbers_a_tables_order_holds(table):
    path = table("path,tracklet\nb.png,t\na.png,t\n")
    (tracklet,) = read_csv(path)
    assert [Path(frame).name for frame in tracklet.frames] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: there is no column 'tracklet'"),
        ("tracklet,path\n", "has no row"),
        ("tracklet,file\n", "line 1: there is no column 'path'"),
        ("tracklet,path,persn\n", "line 1: unknown column 'persn'"),
        ("tracklet,path,path\n", "line 1: a column occurs twice"),
        ("tracklet,path,left,top\n", "line 1: a box needs left, top, width and height"),
        ("tracklet,path\nt\n", "line 2: there must be 2 cells"),
        ("tracklet,path\nt,a.png,x\n", "line 2: there must be 2 cells"),
        ("tracklet,path\n,a.png\n", "line 2: tracklet is empty"),
        ("tracklet,path\nt,a.png\nt,c.png\n", r"line 3: there is no file .*c\.png"),
        ("tracklet,path,frame\nt,a.png,1.5\n", "line 2: frame must be a whole number, got '1.5'"),
        ("tracklet,path,frame\nt,a.png,1\nt,b.png,1\n", "line 3: tracklet 't' has frame 1 twice"),
        ("tracklet,path,frame\nt,a.png,1\nt,b.png,\n", "must have a frame on every line or"),
        ("tracklet,path,camera\nt,a.png,x\n", "line 2: camera must be a number, got 'x'"),
        ("tracklet,path,camera\nt,a.png,-1\n", "line 2: camera must be at least 0, got -1"),
        ("tracklet,path,camera\nt,a.png,0\nt,b.png,1\n", "line 3: .* has camera 1 here and 0 on"),
        ("tracklet,path,person\nt,a.png,x\nt,b.png,\n", "line 3: .* has person None here and 'x'"),
        ("tracklet,path,left,top,width,height\nt,a.png,0,0,0,5\n", "line 2: .*area, got 0 x 5"),
        ("tracklet,path,left,top,width,height\nt,a.png,0,0,nan,5\n", "line 2: width must be a num"),
        ("tracklet,path,left,top,width,height\nt,a.png,0,0,,5\n", "line 2: width must be a number"),
        ('tracklet,path\n"t,a.png\n', "line 2: unexpected end of data"),
    ],
)
def test_a_fault_of_a_table_is_named_with_its_line(table, text, message):
    with pytest.raises(TableError, match=message):
        read_csv(table(text))


def test_a_table_that_is_missing_or_no_text_is_an_error(tmp_path):
    with pytest.raises(TableError, match="No such file"):
        read_csv(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="not a text in UTF-8"):
        read_csv(tmp_path / "table.csv")


def test_a_table_may_say_where_and_in_what_a_person_was_seen(table):
    path = table(
        "tracklet,path,platform,modality,clothes,session\n"
        "t,a.png,aerial,infrared,red coat,day 2\nt,b.png,aerial,infrared,red coat,day 2\n"
    )
    (tracklet,) = read_table(path)
    assert (tracklet.platform, tracklet.modality) == ("aerial", "infrared")
    assert (tracklet.clothes, tracklet.session) == ("red coat", "day 2")
    assert read_csv(path) == [tracklet]
    path.write_text("tracklet,path,clothes\nt,a.png,red\nt,b.png,blue\n")
    with pytest.raises(TableError, match=r"line 3: .* has clothes 'blue' here and 'red' on line 2"):
        read_table(path)


def write_parquet(target, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), target)
    return target


def test_parquet_says_the_same_as_csv(table):
    path = table(
        "tracklet,path,frame,person,camera,left,top,width,height\n"
        "t10,a.png,7,ann,1,0,0,2,3\nt2,b.png,1,,,,,,\nt10,b.png,5,ann,1,1,1,2,2\n"
    )
    nan = float("nan")
    parquet = write_parquet(
        path.with_suffix(".parquet"),
        tracklet=["t10", "t2", "t10"],
        path=["a.png", "b.png", "b.png"],
        frame=[7, 1, 5],
        person=["ann", None, "ann"],
        camera=[1.0, nan, 1.0],  # as a data frame holds whole numbers of which one is unknown
        left=[0, None, 1],
        top=[0, None, 1],
        width=[2, None, 2],
        height=[3, None, 2],
    )
    assert read_table(parquet) == read_table(path)


def test_a_fault_of_a_parquet_table_is_named_with_its_row(tmp_path):
    draw(tmp_path / "a.png")
    path = write_parquet(tmp_path / "t.parquet", tracklet=["t", "t"], path=["a.png", "b.png"])
    with pytest.raises(TableError, match=r"t\.parquet, row 2: there is no file .*b\.png"):
        read_table(path)
    write_parquet(path, tracklet=["t"], file=["a.png"])
    with pytest.raises(TableError, match=r"t\.parquet: there is no column 'path'"):
        read_table(path)
    write_parquet(path, tracklet=["t"], path=["a.png"], camera=[-1])
    with pytest.raises(TableError, match="row 1: camera must be at least 0, got -1"):
        read_table(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(TableError, match=r"damaged or not a parquet file"):
        read_table(path)
    with pytest.raises(TableError, match="no such file"):
        read_table(tmp_path / "gone.parquet")
    with pytest.raises(TableError, match=r"ends in \.csv or \.parquet"):
        read_table(tmp_path / "table.xlsx")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[table\]'"):
        read_table(tmp_path / "t.parquet")


# --- MOT -----------------------------------------------------------------------------------------


def test_tracks_of_a_video_become_tracklets(tracks):
    source, boxes = tracks("1,10,0,0,9,8,1,-1,-1,-1\n3,10,2,0,9,8,1\n1,2,1,1,4,4,1\n\n")
    second, tenth = read_mot(source, boxes)
    assert [second.name, tenth.name] == ["street/2", "street/10"]
    assert tenth.frame_indices == (0, 2)
    assert (tenth.first_frame, tenth.last_frame) == (1, 3)
    assert (tenth.person, tenth.camera) == (None, None)
    assert [frame.shape for frame in tenth.open()] == [(8, 9, 3)] * 2
    assert [int(frame[0, 0, 0]) for frame in tenth.open()] == [1, 3]
    assert tenth.thumbnail == Thumbnail(path=str(source), frame=2, box=(2, 0, 9, 8))


def test_what_the_ground_truth_does_not_count_is_left_out(tracks):
    source, boxes = tracks("1,1,0,0,9,8,0,12,0.5\n1,2,0,0,9,8,1,1,1\n")
    assert [tracklet.name for tracklet in read_mot(source, boxes)] == ["street/2"]


def test_six_columns_blanks_and_fractions_are_enough(tracks):
    source, boxes = tracks("1 2.0 0.5 1e0 9.25 8\n2, 2, 0, 0, 9, 8,\n")
    (tracklet,) = read_mot(source, boxes)
    assert tracklet.boxes == ((0.5, 1, 9.25, 8), (0, 0, 9, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no box"),
        ("1,1,0,0,9,8,0\n", "has no box"),
        ("1,1,0,0,9\n", "line 1: there must be frame, id, left, top, width, height, got 5 cells"),
        ("1,1,0,0,9,8\n0,1,0,0,9,8\n", "line 2: frame must be at least 1, got 0"),
        ("1,-1,0,0,9,8\n", "line 1: id is -1, so these are detections and not yet tracks"),
        ("1,1,0,0,9,8\n1,1,0,0,9,8\n", "line 2: id 1 has two boxes in one frame"),
        ("1,1,0,0,9,0\n", "has no box"),
        ("1,1,,0,9,8\n", "line 1: left must be a number, got ''"),
        ("1,1,inf,0,9,8\n", "line 1: left must be a number, got 'inf'"),
        ("1,x,0,0,9,8\n", "line 1: id must be a number, got 'x'"),
        ("frame,id,left,top,width,height\n", "line 1: frame must be a number, got 'frame'"),
    ],
)
def test_a_fault_of_a_file_of_boxes_is_named_with_its_line(tracks, text, message):
    with pytest.raises(TableError, match=message):
        read_mot(*tracks(text))


def test_a_missing_video_is_an_error(tmp_path):
    with pytest.raises(TableError, match="no such video or folder"):
        read_mot(tmp_path / "a.mp4", tmp_path / "boxes.txt")


# --- real data -----------------------------------------------------------------------------------


def test_mini_mars_is_read_as_its_readme_counts_it():
    train = read_folder(real("mini_mars", "bbox_train"))
    test = read_folder(real("mini_mars", "bbox_test"))
    assert (len(train), len(test)) == (32, 40)
    assert sum(len(t.frames) for t in train) == 1719
    assert sum(len(t.frames) for t in test) == 2533
    assert {t.camera for t in train + test} == set(range(6))
    assert len({t.person for t in train}) == 16
    assert all((t.first_frame, t.last_frame) == (1, len(t.frames)) for t in train + test)


def test_pets_crops_are_read_by_a_layout():
    tracklets = read_folder(real("pets09_s2l1", "crops"), "{person}/{tracklet}")
    assert len(tracklets) == 29
    assert len({t.person for t in tracklets}) == 10
    assert sum(len(t.frames) for t in tracklets) == 1874


def test_the_tracks_of_tud_campus_are_those_of_its_ground_truth():
    folder = real("tud_campus")
    tracklets = read_mot(folder / "TUD-Campus.mp4", folder / "gt" / "gt.txt")
    assert [t.name for t in tracklets] == [f"TUD-Campus/{number}" for number in range(1, 9)]
    assert sum(len(t.boxes) for t in tracklets) == 359
    shapes = [frame.shape for frame in tracklets[5].open()]
    assert len(shapes) == 9
    assert all(0 < height <= 480 and 0 < width <= 640 for height, width, _ in shapes)


def test_a_name_that_no_file_can_have_is_no_file(tmp_path):
    name = tmp_path / ("x" * 300)
    with pytest.raises(TableError, match="there is no such folder"):
        read_folder(name)
    with pytest.raises(TableError, match="there is no such video or folder"):
        read_mot(name, tmp_path / "boxes.txt")


def test_a_cell_that_no_file_can_be_called_is_no_file(table):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(TableError, match="line 2: there is no file"):
            read_csv(table(f"tracklet,path\na,{name}\n"))


def test_a_name_with_thousands_of_digits_is_a_name(table):
    name = "9" * 5000
    tracklets = read_csv(table(f"tracklet,path\n{name},a.png\n1,b.png\n"))
    assert [tracklet.name for tracklet in tracklets] == ["1", name]


def test_what_pyarrow_says_of_damage_becomes_one_line(tmp_path):
    import pyarrow
    import pyarrow.parquet

    draw(tmp_path / "a.png")
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"tracklet": ["a"], "path": ["a.png"]}), path)
    content = bytearray(path.read_bytes())
    content[4:30] = bytes(26)  # the first page's header
    path.write_bytes(content)
    with pytest.raises(TableError, match="damaged or not a parquet file") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_a_line_break_in_a_path_does_not_break_the_message(table):
    with pytest.raises(TableError, match="there is no file") as caught:
        read_csv(table('tracklet,path\na,"x\ny.png"\n'))
    assert "\n" not in str(caught.value)
