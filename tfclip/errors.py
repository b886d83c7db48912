"""The exceptions that tfclip raises on purpose; each message is one sentence for the caller."""


class TFCLIPError(Exception):
    r"""Base of every exception below: ``except TFCLIPError`` catches what tfclip can foresee.

    Arguments of a wrong kind or value, when no file is involved, raise the built-in ``TypeError``
    or ``ValueError``; ``ConfigError`` and ``FrameError`` are ``ValueError`` too.

    A message is one line that a terminal shows as it is, whatever it quotes from a file: what
    cannot be printed is written as an escape.

    Example:
        >>> print(TFCLIPError("there is no file a\nb"))
        there is no file a\nb
    """

    def __str__(self) -> str:
        return "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in super().__str__()
        )


class ConfigError(TFCLIPError, ValueError):
    """A configuration that is invalid, unknown or from a newer version of tfclip."""


class FrameError(TFCLIPError, ValueError):
    """Frames that cannot be used: none at all, unreadable, of a wrong shape, range or box."""


class WeightsError(TFCLIPError, RuntimeError):
    """Weights that cannot be loaded: missing, damaged, unsafe or of another architecture."""


class TableError(TFCLIPError, ValueError):
    """A table of tracklets, boxes or embeddings that cannot be read or does not fit together."""


class GalleryError(TFCLIPError, RuntimeError):
    """A gallery that cannot be used: damaged, of another model, or being written by another."""


class SnapshotError(TFCLIPError, RuntimeError):
    """A snapshot of tracks that cannot be used: missing, damaged, or of another model."""


class ExportError(TFCLIPError, RuntimeError):
    """A model that cannot be exported, or an export whose embeddings are not the model's."""


class SaveError(TFCLIPError, OSError):
    """A file that could not be written; whatever stood there before is untouched."""


class MissingExtraError(TFCLIPError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""
