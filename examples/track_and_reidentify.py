r"""Find the same people in two or more videos: pictures, a table, and the videos with names.

    python examples/track_and_reidentify.py                       # two drawn videos, no download
    python examples/track_and_reidentify.py door.mp4 yard.mp4 --boxes door.txt yard.json \
        --classes person --threshold 0.5
    python examples/track_and_reidentify.py street.mp4 --boxes gt.txt --halves --threshold 0.5

A video is a file or a folder of its frames; its boxes are tracks in MOT format, COCO JSON or
Ultralytics JSON. Every track becomes one vector, and the tracks of all videos are grouped into
people, of whom nobody is twice in one video at one time. What comes out, in --out:

    tracklets.csv             a line for each track: who it is, where and when
    person-000.png, ...       crops of each person, over all videos
    0-door.mp4, 1-yard.mp4    the videos, each box in the colour of its person
    tracklets.safetensors     the vectors

Without arguments it draws two videos of people whom no training has seen, fits the threshold on
other drawn people, and says how right the groups are. It takes about a minute. The bundled model
was trained on drawn people only: for real ones give --model. All of it is personal data.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from tfclip import TFCLIP
from tfclip.association import Association, associate
from tfclip.boxes import FrameBoxes, pair_boxes
from tfclip.data import SyntheticVideo, Thumbnail, Tracklet, load_thumbnails, read_tracks
from tfclip.errors import TableError, TFCLIPError
from tfclip.files import replace_when_done
from tfclip.frames import open_frames
from tfclip.functional import (
    Calibration,
    ClusteringResult,
    evaluate_clustering,
    fit_threshold,
    pair_scores,
    squared_euclidean_distance,
)
from tfclip.jobs import encode_to_file
from tfclip.video import TimedFrame, Video, draw_boxes, identity_colour, write_video
from tfclip.visualize import contact_sheet, save_figure

WORLD = 2**32  # no training draws from a world this far
PEOPLE, OTHERS = 10, 24  # drawn people to find, and others to fit the threshold on
FIRST_OTHER = 1000
FALSE_MATCH_RATE = 0.01  # of the fitted threshold
CROPS = 5  # of each track on a contact sheet
COLUMNS = ("tracklet", "video", "camera", "person", "first_frame", "last_frame", "first_second",
           "last_second", "frames")  # fmt: skip


class Recording(NamedTuple):
    """A video, or one half of it, and the tracks in it."""

    path: Path
    camera: int
    tracklets: list[Tracklet]
    times: list[float]  # of every frame of the video, in seconds


class Result(NamedTuple):
    """Who is who; ``score`` is None where nobody knows better."""

    tracklets: list[Tracklet]
    association: Association
    score: ClusteringResult | None


def reidentify(
    recordings: Sequence[Recording],
    model: TFCLIP,
    threshold: float | Calibration,
    out: Path,
    *,
    model_name: str = "",
    least_travel: float | None = None,
) -> Result:
    """Group the tracks of all videos into people, and write tables, pictures and videos."""
    tracklets = [tracklet for recording in recordings for tracklet in recording.tracklets]
    table = encode_to_file(
        model, tracklets, out / "tracklets.safetensors", model_name=model_name, progress=True
    )
    kept = set(table.names)  # without tracks whose boxes all lie outside the picture
    tracklets = [tracklet for tracklet in tracklets if tracklet.name in kept]
    cameras = [tracklet.camera for tracklet in tracklets]
    travel = None
    if least_travel is not None:
        travel = np.full((len(recordings), len(recordings)), least_travel)
    association = associate(
        table.embeddings,
        threshold=threshold,
        cameras=cameras,
        times=[seconds(recordings, tracklet) for tracklet in tracklets],
        min_travel=travel,
    )
    names = [tracklet.name for tracklet in tracklets]
    people = dict(zip(names, association.labels.tolist(), strict=True))
    write_table(recordings, tracklets, people, out / "tracklets.csv")
    write_sheets(tracklets, people, out)
    for number, path in enumerate(dict.fromkeys(recording.path for recording in recordings)):
        here = [tracklet for tracklet in tracklets if tracklet.frames == str(path)]
        write_annotated(path, here, people, out / f"{number}-{name_of(path)}.mp4")
    persons = [tracklet.person for tracklet in tracklets]
    score = None if None in persons else evaluate_clustering(association.labels, persons)
    return Result(tracklets, association, score)


def name_of(path: Path) -> str:
    """Return what a video is called; folders of frames are often called img1."""
    return path.resolve().parent.name if path.name == "img1" else path.stem


def seconds(recordings: Sequence[Recording], tracklet: Tracklet) -> tuple[float, float]:
    """Return when a tracklet begins and ends, in seconds of its video."""
    times = next(r.times for r in recordings if r.camera == tracklet.camera)
    indices = tracklet.frame_indices or (0,)
    return times[indices[0]], times[indices[-1]]


def write_table(
    recordings: Sequence[Recording],
    tracklets: Sequence[Tracklet],
    people: dict[str, int],
    path: Path,
) -> None:
    """Write a line for each track."""
    with replace_when_done(path) as temporary:
        temporary.chmod(0o600)  # who was where is personal data
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for tracklet in tracklets:
                begin, end = seconds(recordings, tracklet)
                where = (tracklet.name, tracklet.frames, tracklet.camera, people[tracklet.name])
                span = (tracklet.first_frame, tracklet.last_frame, f"{begin:.3f}", f"{end:.3f}")
                writer.writerow((*where, *span, len(tracklet.frame_indices or ())))


def write_sheets(tracklets: Sequence[Tracklet], people: dict[str, int], out: Path) -> None:
    """Draw the crops of every person, a line for each track."""
    for old in out.glob("person-*.png"):  # of an earlier run, which may have found more people
        old.unlink()
    shown = [(tracklet, place) for tracklet in tracklets for place in spread(tracklet)]
    crops = load_thumbnails([thumbnail(tracklet, place) for tracklet, place in shown])
    for person in tqdm(range(max(people.values()) + 1), "contact sheets", unit="person"):
        mine = [
            (f"cam {tracklet.camera} · frame {(tracklet.frame_indices or ())[place] + 1}", crop)
            for (tracklet, place), crop in zip(shown, crops, strict=True)
            if people[tracklet.name] == person and crop is not None
        ]
        if not mine:
            continue
        tracks = [tracklet for tracklet in tracklets if people[tracklet.name] == person]
        cameras = len({tracklet.camera for tracklet in tracks})
        title = f"Person {person}: {count(len(tracks), 'track')} in {count(cameras, 'camera')}"
        figure = contact_sheet(
            [crop for _, crop in mine],
            columns=CROPS,
            title=title,
            labels=[label for label, _ in mine],
        )
        save_figure(figure, out / f"person-{person:03d}.png")


def spread(tracklet: Tracklet) -> list[int]:
    """Return a few places in a tracklet, evenly spread, as many for each."""
    last = len(tracklet.frame_indices or ()) - 1
    return [round(last * (i + 0.5) / CROPS) for i in range(CROPS)]


def thumbnail(tracklet: Tracklet, place: int) -> Thumbnail:
    """Return where the crop of one frame of a tracklet is."""
    indices, boxes = tracklet.frame_indices or (), tracklet.boxes
    return Thumbnail(path=str(tracklet.frames), frame=indices[place], box=boxes[place])


def count(number: int, thing: str) -> str:
    """Return a number with its noun."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def write_annotated(
    path: Path, tracklets: Sequence[Tracklet], people: dict[str, int], out: Path
) -> None:
    """Write a video with every box in the colour of its person."""
    boxes: dict[int, list[tuple[int, tuple[float, ...]]]] = {}
    for tracklet in tracklets:
        for frame, box in zip(tracklet.frame_indices or (), tracklet.boxes, strict=True):
            boxes.setdefault(frame, []).append((people[tracklet.name], box))
    table = {
        frame: FrameBoxes(
            frame=frame,
            boxes=np.array([box for _, box in found]),
            track_ids=np.arange(len(found)),
        )
        for frame, found in boxes.items()
    }

    def draw() -> Iterator[TimedFrame]:
        for frame, found in tqdm(pair_boxes(open_timed(path), table), out.name, unit="frame"):
            who = [boxes[found.frame][row][0] for row in found.track_ids.tolist()]
            labels = [f"person {person}" for person in who]
            colours = [identity_colour(person) for person in who]
            yield frame._replace(pixels=draw_boxes(frame.pixels, found.boxes, labels, colours))

    write_video(out, draw())


def open_timed(path: Path) -> Iterator[TimedFrame]:
    """Yield the frames of a video, or of a folder of its frames as 25 a second."""
    if path.is_dir():
        for number, pixels in enumerate(open_frames(path)):
            yield TimedFrame(pixels, number / 25, number)
    else:
        yield from Video(path).timed()


def open_recordings(options: argparse.Namespace) -> list[Recording]:
    """Read the tracks of the videos that are asked for."""
    recordings = []
    for number, (path, boxes) in enumerate(zip(options.videos, options.boxes, strict=True)):
        choice = {"classes": options.classes, "min_confidence": options.min_confidence}
        tracklets = read_tracks(path, boxes, camera=number, **choice)
        times = [i / 25 for i in range(len(open_frames(path)))] if path.is_dir() else []
        recording = Recording(path, number, tracklets, times or Video(path).times())
        check_length(recording)
        recordings += halves(recording) if options.halves else [recording]
    return [
        recording._replace(tracklets=[rename(tracklet) for tracklet in recording.tracklets])
        for recording in recordings
    ]


def check_length(recording: Recording) -> None:
    """Refuse boxes that go on after the video ends."""
    for tracklet in recording.tracklets:
        if (tracklet.last_frame or 0) > len(recording.times):
            raise TableError(
                f"{recording.path} has {len(recording.times)} frames, but {tracklet.name} is in "
                f"frame {tracklet.last_frame}; are the boxes of another video?"
            )


def rename(tracklet: Tracklet) -> Tracklet:
    """Put the camera before the name: two videos may have one name, and halves have."""
    return dataclasses.replace(tracklet, name=f"{tracklet.camera}/{tracklet.name}")


def halves(recording: Recording) -> list[Recording]:
    """Cut a video whose ids are true in two, as if by two cameras that saw the same people."""
    middle = len(recording.times) // 2
    parts = []
    for half in range(2):
        camera = 2 * recording.camera + half
        cut = [part(tracklet, half, middle, camera) for tracklet in recording.tracklets]
        parts.append(recording._replace(camera=camera, tracklets=[p for p in cut if p is not None]))
    return parts


def part(tracklet: Tracklet, half: int, middle: int, camera: int) -> Tracklet | None:
    """Return what of a tracklet lies in one half, or None."""
    rows = [
        row for row, frame in enumerate(tracklet.frame_indices or ()) if (frame >= middle) == half
    ]
    if not rows:
        return None
    frames = tuple((tracklet.frame_indices or ())[row] for row in rows)
    return dataclasses.replace(
        tracklet,
        camera=camera,
        person=tracklet.name,
        frame_indices=frames,
        boxes=tuple(tracklet.boxes[row] for row in rows),
        first_frame=frames[0] + 1,
        last_frame=frames[-1] + 1,
        thumbnail=None,
    )


def draw_recordings(
    people: Sequence[int], folder: Path, frames: int, world: int
) -> list[Recording]:
    """Draw people in two cameras; who is who is known."""
    recordings = []
    for camera in tqdm(range(2), "drawing", unit="video"):
        drawn = SyntheticVideo(people, camera, num_frames=frames, seed=WORLD + world)
        video, boxes = drawn.write(folder, f"camera-{camera}")
        tracklets = [
            dataclasses.replace(
                tracklet, person=drawn.persons[int(tracklet.name.rpartition("/")[2])]
            )
            for tracklet in read_tracks(video, boxes, camera=camera)
        ]
        tracklets = [rename(tracklet) for tracklet in tracklets]
        recordings.append(Recording(video, camera, tracklets, Video(video).times()))
    return recordings


def fit_on_others(model: TFCLIP, folder: Path, people: int, frames: int, world: int) -> Calibration:
    """Fit the threshold on other drawn people in the same two cameras."""
    others = draw_recordings(range(FIRST_OTHER, FIRST_OTHER + people), folder, frames, world)
    tracklets = [tracklet for recording in others for tracklet in recording.tracklets]
    embeddings = encode_to_file(model, tracklets, folder / "tracklets.safetensors").embeddings
    persons = [tracklet.person for tracklet in tracklets]
    cameras = [tracklet.camera for tracklet in tracklets]
    distance = squared_euclidean_distance(embeddings, embeddings)
    pairs = pair_scores(distance, persons, persons, cameras, cameras)
    return fit_threshold(*pairs, false_match_rate=FALSE_MATCH_RATE)


def run_drawn(
    model: TFCLIP, out: Path, *, people: int, others: int, frames: int, world: int = 0
) -> Result:
    """Do all of it on drawn people."""
    calibration = fit_on_others(model, out / "others", others, frames * 2, world)
    recordings = draw_recordings(range(people), out / "drawn", frames, world)
    return reidentify(recordings, model, calibration, out, model_name="tfclip-tiny")


def read_threshold(model: TFCLIP, given: float | None) -> float:
    """Return the threshold that is given, or the one that was fitted for the model."""
    if given is not None:
        return given
    fitted = model.config.calibration
    if not fitted:
        raise SystemExit(
            "give --threshold: this model holds none, and only pairs of people like these can say "
            "what is near (see docs/evaluation.md, tfclip evaluate --fit-threshold)"
        )
    return float(fitted["threshold"])


def say(result: Result, out: Path) -> None:
    """Print what was found."""
    labels = result.association.labels.tolist()
    cameras: dict[int, set[int | None]] = {}
    for label, tracklet in zip(labels, result.tracklets, strict=True):
        cameras.setdefault(label, set()).add(tracklet.camera)
    several = sum(len(seen) > 1 for seen in cameras.values())
    print(f"{count(len(labels), 'track')} are {len(cameras)} people, {several} of them in more "
          f"than one camera (threshold {result.association.threshold:.4g})")  # fmt: skip
    for rule, num_pairs, num_near in result.association.forbidden:
        print(f"pairs forbidden by {rule}: {num_pairs}, {num_near} of them within the threshold")
    if result.score is not None:
        print(f"\nagainst the truth:\n{result.score}\n")
    print(f"table, contact sheets and videos: {out}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
    parser.add_argument("--boxes", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--model", default="tfclip-tiny", help="folder, Hub name or tfclip-tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threshold", type=float, help="squared distance; default: the model's")
    parser.add_argument("--classes", nargs="+", help="take only boxes of these classes")
    parser.add_argument("--min-confidence", type=float, help="take only boxes at least this sure")
    parser.add_argument("--least-travel", type=float, metavar="SECONDS",
                        help="the videos began at one instant, and nobody gets from one to another "
                        "in less")  # fmt: skip
    parser.add_argument("--halves", action="store_true",
                        help="the ids are true: take the halves of each video as two cameras, and "
                        "say how right the groups are")  # fmt: skip
    parser.add_argument("--world", type=int, default=0, help="other drawn people and places")
    parser.add_argument("--out", type=Path, default=Path("reidentified"))
    options = parser.parse_args(arguments)
    if len(options.boxes) != len(options.videos):
        parser.error(
            f"--boxes must be one file for each video, got {len(options.boxes)} for "
            f"{count(len(options.videos), 'video')}"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    options = parse(arguments)
    try:
        model = TFCLIP.from_pretrained(options.model, device=options.device)
        if not options.videos:
            sizes = {"people": PEOPLE, "others": OTHERS, "frames": 100}
            result = run_drawn(model, options.out, **sizes, world=options.world)
        else:
            threshold = read_threshold(model, options.threshold)
            result = reidentify(
                open_recordings(options),
                model,
                threshold,
                options.out,
                model_name=options.model,
                least_travel=options.least_travel,
            )
    except TFCLIPError as error:
        print(f"track_and_reidentify: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    say(result, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
