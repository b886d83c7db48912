"""The page itself: what is on it, and what its buttons do."""

from __future__ import annotations

import contextlib
import html
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from tfclip.app.desk import Answer, Desk, draw_sheet
from tfclip.app.galleries import DrawnGallery, SearchedGallery, open_gallery
from tfclip.app.serving import check_gradio, in_loop
from tfclip.app.uploads import read_upload
from tfclip.errors import TFCLIPError
from tfclip.files import replace_when_done
from tfclip.images import IMAGE_SUFFIXES
from tfclip.pages import html_figure
from tfclip.video import VIDEO_SUFFIXES
from tfclip.visualize import CARD_STYLE, check_matplotlib, ranked_cards

if TYPE_CHECKING:
    import gradio

    from tfclip.data.tracklets import Tracklet

_INTRODUCTION = """
# Find a person again

Drop the frames of one person, or a video with boxes: the tracklet becomes one vector, and the
nearest tracklets of the gallery are shown, those of other cameras among them. Everything stays on
the machine that runs this page. **Search for people only where you may:** the nearest tracklet is
a suggestion, and may be anybody.
"""
_SAMPLINGS = [("every frame", "dense"), ("a few, evenly spread: faster", "rrs")]
_NOTHING = '<div class="tf-empty">Drop a tracklet, or try a drawn person: results come here.</div>'
_STYLE = """
.tf-facts { font-size: 13px; opacity: .75; margin: 4px 0 10px; overflow-wrap: anywhere }
.tf-empty { opacity: .6; padding: 40px 10px; text-align: center }
.tf-heading { font-size: 16px !important; margin: 10px 0 6px !important }
.tf-row { margin: 2px 0 8px; gap: 8px }
.tf-card { width: 88px; font-size: 11px }
.tf-card .tf-picture { height: 168px }
.tf-card b { font-size: 12px }
img.figure { width: 100%; max-width: 860px; margin: 0 0 6px; border-radius: 6px }
"""
_DELETE_EVERY, _DELETE_AFTER = 600, 3600  # seconds

_logger = logging.getLogger(__name__)


def build_app(
    model: str | Sequence[str] = "tfclip-tiny",
    gallery: str | Path | SearchedGallery | None = None,
    *,
    layout: str = "auto",
    any_model: bool = False,
    device: str | None = None,
) -> gradio.Blocks:
    """Build the page; ``tfclip.app.serve`` runs it.

    The first model is loaded, and the gallery encoded with it, before this returns.

    Args:
        model: A folder, a bundled name or a Hub repository; or several, to choose from on the page.
        gallery: A folder of tracklets, a file of embeddings, the folder of a gallery, or what
            ``tfclip.app.galleries.open_gallery`` returns. None is a gallery of drawn people.
        layout: Of a folder of tracklets, as in ``tfclip.data.read_folder``.
        any_model: Let whoever uses the page name another model, a folder of this machine or a Hub
            repository. Only where nobody but you uses it.
        device: Where models run; None is the CPU.

    Raises:
        MissingExtraError: Gradio or Matplotlib is not installed.
        TFCLIPError: The model or the gallery cannot be used.
        ValueError: An argument is wrong.
    """
    gr = check_gradio()
    check_matplotlib()
    if not isinstance(gallery, SearchedGallery):
        gallery = open_gallery(gallery, layout)
    models = [model] if isinstance(model, str) else list(model)
    desk = Desk(models, gallery, any_model=any_model, device=device)
    for name in desk.models[:1]:
        gallery.table(*desk.load(name))
    return in_loop(lambda: _make_page(gr, desk))


def _make_page(gr: Any, desk: Desk) -> Any:
    with gr.Blocks(
        title="tfclip: find a person again",
        analytics_enabled=False,
        delete_cache=(_DELETE_EVERY, _DELETE_AFTER),
    ) as page:
        _tie_together(gr, desk, _put_parts(gr, desk), _DrawnFiles(page))
    return page


class _Parts(NamedTuple):
    """What is on the page and can be asked, changed or pressed."""

    files: Any
    boxes: Any
    model: Any
    top: Any
    sampling: Any
    search: Any
    example: Any
    chosen: Any
    sheets: Any
    results: Any
    looked_at: Any


def _put_parts(gr: Any, desk: Desk) -> _Parts:
    """Put the parts on the page, from its top to its end."""
    gr.HTML(f"<style>{CARD_STYLE}{_STYLE}</style>", visible=True)
    gr.Markdown(_INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(
                label="Video or frames",
                file_count="multiple",
                file_types=sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES),
                height=190,
                elem_id="files",
            )
            boxes = gr.File(
                label="Boxes of tracks, in MOT format (optional)",
                file_types=[".txt", ".csv"],
                height=150,
                elem_id="boxes",
            )
            model = gr.Dropdown(
                list(desk.models),
                value=desk.models[0],
                label="Model",
                allow_custom_value=desk.any_model,
                info="or a folder, or owner/name on the Hub" if desk.any_model else None,
                elem_id="model",
            )
            with gr.Accordion("More", open=False):
                top = gr.Slider(1, 40, value=8, step=1, label="Results")
                sampling = gr.Radio(_SAMPLINGS, value="dense", label="Frames that are encoded")
            search = gr.Button("Search", variant="primary", elem_id="search")
            example = gr.Button("Try a drawn person", elem_id="example")
            gr.Markdown(f"Gallery: {html.escape(desk.gallery.name)}.")
        with gr.Column(scale=3):
            chosen = gr.Dropdown([], label="Tracklet", visible=False, elem_id="tracklet")
            sheets = gr.HTML(_NOTHING, elem_id="sheets")
            results = gr.HTML("", elem_id="results")
            looked_at = gr.HTML("", elem_id="looked-at")
    return _Parts(
        files, boxes, model, top, sampling, search, example, chosen, sheets, results, looked_at
    )


def _tie_together(gr: Any, desk: Desk, parts: _Parts, drawn_files: _DrawnFiles) -> None:
    """Tie the buttons, and what is dropped, to what they do."""
    drawn = desk.gallery if isinstance(desk.gallery, DrawnGallery) else DrawnGallery()

    def show(files: list[str] | None, boxes: str | None) -> tuple[Any, ...]:
        """Show what was dropped, before anything is searched."""
        if not files:
            return _nothing_shown(gr)
        with _sentence(gr, files, boxes):
            upload = read_upload(files, boxes)
            for note in upload.notes:
                gr.Info(note)
            tracklets = _tracklets_shown(gr, upload.tracklets)
        return *tracklets, "", ""

    def run(
        files: list[str] | None,
        boxes: str | None,
        chosen: str | None,
        model: str,
        top: int,
        sampling: Any,
    ) -> tuple[Any, ...]:
        """Search for the chosen tracklet."""
        with _sentence(gr, files, boxes):
            tracklets = read_upload(files, boxes).tracklets
            names = [tracklet.name for tracklet in tracklets]
            tracklet = tracklets[names.index(chosen) if chosen in names else 0]
            return _answered(desk.search(tracklet, model, top=int(top), sampling=sampling))

    def run_example(turn: int, model: str, top: int, sampling: Any) -> tuple[Any, ...]:
        """Search for the next drawn person, whose frames are put where uploads go."""
        tracklet = drawn.query(turn)
        with _sentence(gr, [], None):
            answer = desk.search(tracklet, model, top=int(top), sampling=sampling)
        tracklets = _tracklets_shown(gr, [tracklet])
        return drawn_files.write(tracklet), None, *tracklets, *_answered(answer), turn + 1

    turn = gr.State(0)
    given = [parts.files, parts.boxes]
    found = [parts.results, parts.looked_at]
    settings = [parts.model, parts.top, parts.sampling]
    shown = [parts.chosen, parts.sheets, *found]
    files, boxes = given
    for event in (files.upload, files.delete, files.clear, boxes.upload, boxes.clear):
        event(show, given, shown, show_progress_on=parts.sheets, **_PRIVATE)
    asked = [*given, parts.chosen, *settings]
    parts.search.click(run, asked, found, show_progress_on=parts.results, **_PRIVATE)
    wanted, changed = [turn, *settings], [*given, *shown, turn]
    parts.example.click(run_example, wanted, changed, show_progress_on=parts.sheets, **_PRIVATE)


# No public interface of every button: who wants one has the library.
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def _nothing_shown(gr: Any) -> tuple[Any, ...]:
    return gr.Dropdown(visible=False), _NOTHING, "", ""


def _tracklets_shown(gr: Any, tracklets: Sequence[Tracklet]) -> tuple[Any, str]:
    """Return what the list of tracklets and their contact sheets become."""
    names = [tracklet.name for tracklet in tracklets]
    choice = gr.Dropdown(names, value=names[0], visible=len(names) > 1)
    sheets = [html_figure(draw_sheet(tracklet), tracklet.name) for tracklet in tracklets]
    return choice, '<h2 class="tf-heading">Tracklets</h2>' + "".join(sheets)


def _answered(answer: Answer) -> tuple[str, str]:
    """Return what the results, and the picture of what was looked at, become."""
    facts = f'<div class="tf-facts">{html.escape(answer.facts)}</div>'
    cards = ranked_cards(answer.query, answer.results)
    results = f'<h2 class="tf-heading">Nearest in the gallery</h2>{cards}{facts}'
    if answer.looked_at is None:
        return results, ""
    meaning = "Frames, and over them what the temporal memory read in their patches"
    heading = '<h2 class="tf-heading">What the temporal memory looked at</h2>'
    return results, heading + html_figure(answer.looked_at, meaning)


@contextlib.contextmanager
def _sentence(gr: Any, files: Sequence[str] | None, boxes: str | None) -> Iterator[None]:
    """Turn what is wrong into one sentence on the page, without the paths of this machine."""
    try:
        yield
    except (TFCLIPError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        for path in (*(files or ()), *([boxes] if boxes else ())):
            text = text.replace(str(path), Path(path).name)
        raise gr.Error(text, print_exception=False) from error
    except Exception as error:
        _logger.exception("the app failed")
        raise gr.Error(
            "This failed; the log of the app says more.", print_exception=False
        ) from error


class _DrawnFiles:
    """Frames of drawn people as files, of which Gradio makes copies; gone when the page is."""

    def __init__(self, page: object) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tfclip-drawn-"))
        weakref.finalize(page, shutil.rmtree, self._folder, ignore_errors=True)

    def write(self, tracklet: Tracklet) -> list[str]:
        """Return the files of a tracklet's frames."""
        paths = []
        for position, frame in enumerate(tracklet.open()):
            path = self._folder / tracklet.name.replace("/", "-") / f"{position:04d}.png"
            if not path.exists():
                with replace_when_done(path) as temporary:
                    Image.fromarray(frame).save(temporary)
            paths.append(str(path))
        return paths
