"""The app without a browser: galleries, uploads, searches, what the page's buttons do, serving."""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip import TFCLIP, Gallery
from tfclip.app import build_app, serve
from tfclip.app.desk import Desk, draw_sheet
from tfclip.app.galleries import DrawnGallery, open_gallery
from tfclip.app.uploads import MOST_FRAMES, MOST_TRACKLETS, read_upload
from tfclip.cli import main
from tfclip.data import SyntheticTracklets, Tracklet, read_folder
from tfclip.errors import FrameError, GalleryError, MissingExtraError, TableError, TFCLIPError
from tfclip.jobs import encode_to_file

LAYOUT = "{person}/{camera}/{tracklet}"


@pytest.fixture(scope="module")
def drawn():
    return DrawnGallery()


@pytest.fixture(scope="module")
def desk(drawn):
    return Desk(["tfclip-tiny"], drawn)


@pytest.fixture
def folder(tmp_path):
    people = SyntheticTracklets(3, 2, 1, num_frames=3, frame_size=(64, 32))
    people.write(tmp_path / "people")
    return tmp_path / "people"


def write_frames(tracklet: Tracklet, folder: Path, names: str = "{}.png") -> list[Path]:
    """Write each frame into a folder of its own, as uploads arrive."""
    paths = []
    for position, frame in enumerate(tracklet.open()):
        path = folder / f"upload{position}" / names.format(position)
        path.parent.mkdir(parents=True)
        Image.fromarray(frame).save(path)
        paths.append(path)
    return paths


def write_video(path: Path, frames: Any) -> Path:
    av = pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


# --- what is searched in -------------------------------------------------------------------------


def test_every_drawn_person_is_found_first_in_the_cameras_that_the_query_is_not_from(desk, drawn):
    for person in (0, 4, 9):
        query = drawn.query(person)
        answer = desk.search(query, top=3)
        assert {shown.person for shown in answer.results} == {str(person)}
        assert query.camera not in {shown.camera for shown in answer.results}
        distances = [shown.distance for shown in answer.results]
        assert distances == sorted(distances)


def test_drawn_people_come_round_again(drawn):
    assert (drawn.query(13).frames == drawn.query(3).frames).all()


def test_a_folder_a_file_and_a_gallery_give_the_same_neighbours(folder, tmp_path):
    model = TFCLIP.from_pretrained("tfclip-tiny")
    tracklets = read_folder(folder, LAYOUT)
    table = encode_to_file(model, tracklets, tmp_path / "people.safetensors")
    with Gallery.open(tmp_path / "kept", model=model) as gallery:
        gallery.add_table(table)
    answers = []
    for path in (folder, tmp_path / "people.safetensors", tmp_path / "kept"):
        desk = Desk(["tfclip-tiny"], open_gallery(path, LAYOUT))
        answers.append(desk.search(tracklets[2], top=6))
    for answer in answers:
        assert [shown.label for shown in answer.results] == [
            shown.label for shown in answers[0].results
        ]
        assert [shown.camera for shown in answer.results] == [
            shown.camera for shown in answers[0].results
        ]
        np.testing.assert_allclose(
            [shown.distance for shown in answer.results],
            [shown.distance for shown in answers[0].results],
            atol=1e-5,
        )
    middle = np.asarray(Image.open(tracklets[2].frames[1]))
    assert (answers[0].results[0].picture == middle).all()
    assert (answers[1].results[0].picture == middle).all()
    assert answers[2].results[0].picture is None  # a gallery keeps none


def test_a_file_of_another_model_is_refused(folder, tmp_path, tiny_model):
    encode_to_file(tiny_model, read_folder(folder, LAYOUT), tmp_path / "others.safetensors")
    desk = Desk(["tfclip-tiny"], open_gallery(tmp_path / "others.safetensors"))
    with pytest.raises(TableError, match="embeddings of different models cannot be compared"):
        desk.search(read_folder(folder, LAYOUT)[0])


def test_what_is_no_gallery_is_refused(tmp_path):
    with pytest.raises(TableError, match="the gallery must be a folder of tracklets, a file"):
        open_gallery(tmp_path / "missing")
    with pytest.raises(TableError, match="no image in it"):
        open_gallery(tmp_path)
    Gallery.open(tmp_path / "empty", dim=3).close()
    with pytest.raises(GalleryError, match="must have at least one entry, got none"):
        open_gallery(tmp_path / "empty")


# --- what is uploaded ----------------------------------------------------------------------------


def test_frames_are_put_in_the_natural_order_of_their_names(tmp_path):
    tracklet = SyntheticTracklets(1, 1, 1, num_frames=11, frame_size=(32, 16))[0]
    paths = write_frames(tracklet, tmp_path, "f{}.png")
    (found,), notes = read_upload(list(reversed(paths)))
    assert (np.stack([*found.open()]) == tracklet.frames).all()
    assert notes == []


def test_a_video_with_boxes_is_cut_into_its_tracks(tmp_path):
    frames = np.zeros((6, 48, 96, 3), dtype=np.uint8)
    frames[:, :, :48], frames[:, :, 48:] = 200, 60
    video = write_video(tmp_path / "street.mp4", frames)
    boxes = tmp_path / "tracks.txt"
    lines = [f"{t},1,0,0,48,48,1" for t in range(1, 7)] + [f"{t},2,48,0,48,48,1" for t in (2, 4)]
    boxes.write_text("\n".join(lines))
    (bright, dark), _ = read_upload([video], boxes)
    assert (bright.name, dark.name) == ("street/1", "street/2")
    assert [round(float(frame.mean()), -1) for frame in bright.open()] == [200] * 6
    assert [round(float(frame.mean()), -1) for frame in dark.open()] == [60] * 2


def test_images_with_boxes_are_cut_as_a_video_is(tmp_path):
    frames = np.zeros((3, 20, 20, 3), dtype=np.uint8)
    for position in range(3):
        frames[position, :10] = position + 1
    paths = write_frames(Tracklet(name="x", frames=frames), tmp_path)
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("1,5,0,0,20,10\n3,5,0,0,20,10\n")
    (found,), _ = read_upload(paths, boxes)
    assert [int(frame.mean()) for frame in found.open()] == [1, 3]
    assert found.name == "5"
    boxes.write_text("4,5,0,0,20,10\n")
    with pytest.raises(TableError, match=r"frames of the boxes must be 1 to 3, .* got 4"):
        read_upload(paths, boxes)


def test_only_the_longest_tracklets_are_kept_and_it_is_said(tmp_path):
    frames = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    paths = write_frames(Tracklet(name="x", frames=frames), tmp_path)
    boxes = tmp_path / "boxes.txt"
    tracks = {track: range(1, track + 1) for track in range(1, 21)}  # track n has n frames
    boxes.write_text("\n".join(f"{t},{n},0,0,8,8" for n, ts in tracks.items() for t in ts))
    tracklets, notes = read_upload(paths, boxes)
    assert [len(t.open()) for t in tracklets] == list(range(20, 20 - MOST_TRACKLETS, -1))
    assert notes == ["Of 20 tracklets the 12 longest are shown."]


@pytest.mark.parametrize("boxed", [False, True])
def test_a_long_tracklet_is_thinned_evenly_and_it_is_said(tmp_path, boxed):
    frames = np.zeros((300, 16, 16, 3), dtype=np.uint8)
    frames[:] = (np.arange(300) * 0.8).astype(np.uint8)[:, None, None, None]
    video = write_video(tmp_path / "long.mp4", frames)
    boxes = None
    if boxed:
        boxes = tmp_path / "boxes.txt"
        boxes.write_text("\n".join(f"{t},1,0,0,16,16" for t in range(1, 301)))
    (found,), notes = read_upload([video], boxes)
    greys = [float(frame.mean()) for frame in found.open()]
    assert len(greys) == MOST_FRAMES
    assert greys[0] == pytest.approx(0, abs=4)
    assert greys[-1] == pytest.approx(239, abs=4)
    assert notes == ["Of a longer tracklet 256 evenly spread frames are used."]


def test_uploads_that_are_no_tracklet_are_refused(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(FrameError, match="drop a video, or the frames"):
        read_upload(None)
    with pytest.raises(FrameError, match="one video or several images, got 1 videos and 1 others"):
        read_upload([picture, tmp_path / "b.mp4"])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(FrameError, match="is not a readable video"):
        read_upload([broken])


# --- asking --------------------------------------------------------------------------------------


def test_only_the_models_that_were_named_may_be_asked_for(drawn):
    with pytest.raises(ValueError, match="the model must be one of tfclip-tiny, got 'a/b'"):
        Desk(["tfclip-tiny"], drawn).load("a/b")
    with pytest.raises(TFCLIPError):  # tried, and not there
        Desk(["tfclip-tiny"], drawn, any_model=True).load("no such folder")
    with pytest.raises(ValueError, match="models must be at least one"):
        Desk([], drawn)


def test_two_models_are_held_and_the_one_asked_for_last_stays(drawn, tmp_path, tiny_config):
    names = []
    for depth in (1, 2, 3):
        names.append(str(tmp_path / str(depth)))
        TFCLIP(tiny_config.replace(temporal_depth=depth)).save_pretrained(names[-1])
    desk = Desk(names, drawn)
    first = desk.load(names[0]).model
    desk.load(names[1])
    assert desk.load(names[0]).model is first
    desk.load(names[2])
    assert desk.load(names[0]).model is first
    assert len(desk._loaded) == 2


def test_a_model_without_temporal_memory_has_nothing_to_show_of_it(drawn, tmp_path, tiny_config):
    TFCLIP(tiny_config.replace(temporal_head="average")).save_pretrained(tmp_path / "average")
    answer = Desk([str(tmp_path / "average")], drawn).search(drawn.query(0), top=1)
    assert answer.looked_at is None
    assert len(answer.results) == 1


def test_a_contact_sheet_shows_frames_from_both_ends(drawn):
    texts = [text.get_text() for text in draw_sheet(drawn.query(0)).axes[0].texts]
    assert "0000/3/0: 12 frames" in texts
    assert texts[-8] == "frame 1"
    assert texts[-1] == "frame 12"


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="Gradio (extra 'app') is not installed")


@pytest.fixture(scope="module")
def page(gradio, drawn):
    page = build_app(gallery=drawn)
    yield page
    page.close()


def press(page: Any, name: str) -> Any:
    """Return what a button of the page calls."""
    return next(call.fn for call in page.fns.values() if call.fn and call.fn.__name__ == name)


def test_one_press_shows_a_drawn_person_and_the_right_results(page):
    files, boxes, _, sheets, results, looked_at, turn = press(page, "run_example")(
        4, "tfclip-tiny", 5, "dense"
    )
    assert len(files) == 12
    assert all(Path(path).exists() for path in files)
    assert boxes is None
    assert "Tracklets" in sheets
    assert results.count("tf-right") == 3  # one in each camera of the gallery
    assert results.count("tf-wrong") == 2
    assert "data:image/png;base64," in looked_at
    assert turn == 5


def test_uploaded_frames_are_shown_and_then_found(page, drawn, tmp_path):
    paths = [str(path) for path in write_frames(drawn.query(6), tmp_path)]
    choice, sheets, results, _ = press(page, "show")(paths, None)
    assert not choice.visible  # there is nothing to choose
    assert sheets.count("<img") == 1
    assert results == ""
    results, _ = press(page, "run")(paths, None, None, "tfclip-tiny", 2, "rrs")
    assert results.count("person 6") == 2
    assert results.count("tf-unknown") == 2  # who was uploaded is not known


def test_nothing_uploaded_shows_where_to_begin(page):
    _, hint, results, looked_at = press(page, "show")(None, None)
    assert "try a drawn person" in hint
    assert (results, looked_at) == ("", "")


def test_a_bad_upload_is_one_sentence_without_the_paths_of_this_machine(page, gradio, tmp_path):
    broken = tmp_path / "secret" / "holiday.mp4"
    broken.parent.mkdir()
    broken.write_bytes(b"no video")
    for name, more in (("show", ()), ("run", (None, "tfclip-tiny", 5, "dense"))):
        with pytest.raises(gradio.Error) as caught:
            press(page, name)([str(broken)], None, *more)
        assert caught.value.message.startswith("holiday.mp4 is not a readable video")
        assert "secret" not in caught.value.message
        assert "\n" not in caught.value.message


def test_what_nobody_foresaw_is_told_to_the_log_and_not_to_the_page(
    page, gradio, drawn, tmp_path, monkeypatch, caplog
):
    paths = [str(path) for path in write_frames(drawn.query(0), tmp_path)]

    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("the inside of this machine")

    monkeypatch.setattr(Desk, "search", fail)
    with pytest.raises(gradio.Error) as caught:
        press(page, "run")(paths, None, None, "tfclip-tiny", 5, "dense")
    assert caught.value.message == "This failed; the log of the app says more."
    assert "the inside of this machine" in caplog.text


def test_a_model_that_may_not_be_chosen_is_one_sentence(page, gradio, drawn, tmp_path):
    paths = [str(path) for path in write_frames(drawn.query(0), tmp_path)]
    with pytest.raises(gradio.Error, match="the model must be one of tfclip-tiny"):
        press(page, "run")(paths, None, None, "somebody/else", 5, "dense")


def test_the_page_offers_no_interface_to_programs_and_reports_nothing(page):
    assert {call.api_visibility for call in page.fns.values()} == {"private"}
    assert not page.analytics_enabled
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.fixture
def contacted(monkeypatch):
    """Record whom this process speaks to."""
    hosts, connect = [], socket.socket.connect

    def recording(self, address):
        hosts.append(address[0] if isinstance(address, tuple) else str(address))
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recording)
    return hosts


def test_the_page_is_served_to_this_machine_alone_and_may_fetch_from_nowhere(page, contacted):
    address = serve(page, wait=False)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "fonts.googleapis" not in text
    assert "cdn" not in text.lower()
    request = urllib.request.Request(f"{address}monitoring")
    with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
        urllib.request.urlopen(request)
    assert set(contacted) <= {"127.0.0.1", "localhost", "::1"}
    assert contacted


# --- the command ---------------------------------------------------------------------------------


def test_the_command_refuses_what_it_cannot_serve(capsys, tmp_path, gradio):
    with pytest.raises(SystemExit):
        main(["app", "--port", "70000"])
    assert "must be a port from 1 to 65535, got '70000'" in capsys.readouterr().err
    assert main(["app", "--gallery", str(tmp_path / "missing")]) == 1
    assert "the gallery must be a folder of tracklets" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["app", "--device", "toaster"])
    assert "toaster" in capsys.readouterr().err


def test_the_command_lets_strangers_choose_only_the_models_given(monkeypatch, capsys, gradio):
    from tfclip import app

    asked = []
    monkeypatch.setattr(app, "build_app", lambda *given, **options: asked.append(options))
    monkeypatch.setattr(app, "serve", lambda *given: asked.append(given))
    assert main(["app", "--device", "cpu"]) == 0
    assert main(["app", "--device", "cpu", "--host", "0.0.0.0", "--port", "7999"]) == 0
    alone, (_, host, port), strangers, (_, open_host, open_port) = asked
    assert (alone["any_model"], host, port) == (True, "127.0.0.1", None)
    assert (strangers["any_model"], open_host, open_port) == (False, "0.0.0.0", 7999)
    assert "everybody who can reach 0.0.0.0 can use this page" in capsys.readouterr().err


def test_without_gradio_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[app\]'"):
        build_app()


def test_the_space_builds_the_page_that_is_tested_here(monkeypatch):
    space = Path(__file__).parents[1] / "examples" / "space"
    settings = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in settings
    assert "app_file: app.py" in settings
    assert "tfclip[app,viz,video]" in (space / "requirements.txt").read_text()
    served = []
    monkeypatch.setattr("tfclip.app.build_app", lambda *given: given)
    monkeypatch.setattr(
        "tfclip.app.serve", lambda *given, **options: served.append((given, options))
    )
    exec(compile((space / "app.py").read_text(), "app.py", "exec"), {"__name__": "__main__"})
    assert served == [((("tfclip-tiny",),), {"host": "0.0.0.0", "port": 7860})]


def test_torch_is_left_as_it_was(desk, drawn):
    state = torch.get_rng_state()
    desk.search(drawn.query(1), top=1)
    assert torch.equal(torch.get_rng_state(), state)
