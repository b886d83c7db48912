"""The app: a page on which a tracklet is dropped, and found again in a gallery (extra ``app``).

``tfclip app`` runs it. ``build_app`` makes the page for a program of your own, such as a Space on
the Hugging Face Hub; ``serve`` runs it without analytics, history or a request to anywhere else.
"""

from __future__ import annotations

from tfclip.app.page import build_app
from tfclip.app.serving import check_gradio, serve

__all__ = ["build_app", "check_gradio", "serve"]
