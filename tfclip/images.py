"""One picture of any kind - file, PIL image, ndarray, tensor - as an RGB array of 8 bits."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from tfclip.errors import FrameError, TFCLIPError
from tfclip.remote import is_address, read_address
from tfclip.untrusted import MAX_DIGITS

Channels = Literal["rgb", "bgr"]
Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
Pixels: TypeAlias = "np.ndarray | Image.Image"  # (H, W, 3) uint8 RGB, or Pillow's image of them

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# A float picture that was resized may leave [0, 1] by rounding; what is further out is a mistake.
_ROUNDING = 1e-3

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_QUARTER_TURNS = (5, 6, 7, 8)  # of EXIF's orientations
_NORMALISED = "; already normalised frames go to model(frames)"

# An image that a caller holds may stand in several tracklets, and Pillow decodes it when it is
# first asked for its pixels: two threads must not do so at once.
_HELD_IMAGES = threading.Lock()


def check_picture(picture: object, name: str) -> None:
    """Refuse, without decoding it, what ``read_picture`` cannot read.

    Args:
        picture: What the caller gave for one frame.
        name: What the message calls it.

    Raises:
        FrameError: A file is missing, or an array or tensor is not one frame.
        TypeError: It is of another type.
    """
    if is_address(picture):
        return  # found, or not, when it is read
    if isinstance(picture, (str, os.PathLike)):
        if is_folder(picture):
            raise FrameError(f"{name} must be an image file, got the folder {picture}")
    elif isinstance(picture, np.ndarray):
        check_array(picture, name)
    elif isinstance(picture, torch.Tensor):
        check_tensor(picture, name)
    elif not isinstance(picture, Image.Image):
        raise TypeError(
            f"{name} must be a path, a PIL image, an ndarray or a tensor, "
            f"got {type(picture).__name__}"
        )


def check_array(array: np.ndarray, name: str, *, stacked: bool = False) -> None:
    """Refuse an ndarray that is not uint8 ``(H, W, 3)``, or ``(T, H, W, 3)`` when ``stacked``.

    Raises:
        FrameError: Its dtype or axes are others; the message says how to change them.
    """
    if array.dtype != np.uint8:
        hint = _NORMALISED if array.dtype.kind == "f" else ""
        raise FrameError(
            f"{name} must be uint8 in [0, 255] when it is an ndarray, got {array.dtype}{hint}"
        )
    layout = ("T", "H", "W", "3") if stacked else ("H", "W", "3")
    _check_axes(array.shape, name, layout, "transpose")


def check_tensor(tensor: torch.Tensor, name: str, *, stacked: bool = False) -> None:
    """Refuse a tensor that is not ``(3, H, W)``, or ``(T, 3, H, W)`` when ``stacked``.

    It must be uint8, or float with values in [0, 1].

    Raises:
        FrameError: Its dtype, axes or values are others; the message says how to change them.
    """
    if tensor.dtype not in (torch.uint8, *_FLOATS):
        raise FrameError(
            f"{name} must be uint8 in [0, 255] or float in [0, 1] when it is a tensor, "
            f"got {tensor.dtype}"
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        raise FrameError(f"{name} must be a dense tensor with values, got a sparse or meta tensor")
    layout = ("T", "3", "H", "W") if stacked else ("3", "H", "W")
    _check_axes(tuple(tensor.shape), name, layout, "permute")
    if tensor.is_floating_point():
        _check_range(tensor.detach(), name)


def _check_axes(shape: tuple[int, ...], name: str, layout: tuple[str, ...], method: str) -> None:
    channel = layout.index("3")
    if len(shape) == len(layout) and shape[channel] == 3:
        if 0 in shape:
            raise FrameError(f"{name} must have at least one frame and pixel, got shape {shape}")
        return
    cure = _axes_cure(shape, name, layout, method)
    raise FrameError(f"{name} must be ({', '.join(layout)}), got shape {shape}{cure}")


def _axes_cure(shape: tuple[int, ...], name: str, layout: tuple[str, ...], method: str) -> str:
    """Return how to bring ``shape`` to ``layout``, or nothing where that can only be guessed."""
    channel, axes = layout.index("3"), len(layout)
    if len(shape) == 5:
        return "; it takes one tracklet, encode_sequences takes many"
    if len(shape) != axes:
        return ""
    threes = [axis for axis in (axes - 3, axes - 1, 0) if shape[axis] == 3]
    if shape[channel] == 4 and threes in ([], [0]):
        return f"; drop alpha with {name}[{':, ' * channel}:3]"
    if shape[channel] == 1 and threes in ([], [0]):
        return "; repeat the grey channel three times"
    if not threes:
        return ""
    order = [axis for axis in range(axes) if axis != threes[0]]
    order.insert(channel, threes[0])
    return f"; use {name}.{method}({', '.join(map(str, order))})"


def _check_range(tensor: torch.Tensor, name: str) -> None:
    low, high = (value.item() for value in tensor.aminmax())  # either is NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FrameError(f"{name} must be finite, got values from {low:g} to {high:g}")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        hint = _NORMALISED if low < 0 else "; use uint8 for [0, 255]" + _NORMALISED
        raise FrameError(
            f"{name} must be in [0, 1] when it is a float tensor, "
            f"got values from {low:g} to {high:g}{hint}"
        )


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a picture of more pixels than Pillow trusts, before it is decoded.

    Pillow itself only warns of those, and refuses what has twice as many.

    Raises:
        FrameError: It is too large.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise FrameError(
            f"{name} must have at most {most:,} pixels, got {width} x {height}; "
            "PIL.Image.MAX_IMAGE_PIXELS sets the limit"
        )


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder and not a file.

    Raises:
        FrameError: Nothing readable stands there, or something else (a pipe, a device).
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise FrameError(f"{path} cannot be opened: {_reason(error)}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise FrameError(f"{path} must be a file or a folder, got a pipe, socket or device")
    return stat.S_ISDIR(mode)


def is_image(path: Path) -> bool:
    """Return whether a file starts like an image."""
    try:
        with Image.open(path):
            return True
    except Exception:  # see _decode
        return False


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return the image files of a folder in natural order, without hidden ones.

    Raises:
        FrameError: There is none, or the folder or a link in it cannot be opened.
    """
    try:
        images = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise FrameError(f"{folder} cannot be opened: {_reason(error)}") from error
    # A folder may be called "x.jpg"; a link to a missing image is an error, not one frame less.
    images = [path for path in images if not is_folder(path)]
    if not images:
        raise FrameError(
            f"{folder} must hold images ({' '.join(sorted(IMAGE_SUFFIXES))}), got none; "
            "sub-folders are not searched"
        )
    return tuple(sorted(images, key=lambda path: natural_key(path.name)))


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a sort key that counts: ``frame2`` comes before ``frame10``.

    Example:
        >>> sorted(["f10", "F2", "f1"], key=natural_key)
        ['f1', 'F2', 'f10']
    """
    parts: list[Any] = re.split(r"(\d+)", name.casefold())  # text and digits take turns
    parts[1::2] = [int(digits[:MAX_DIGITS]) for digits in parts[1::2]]
    return tuple(parts), name


def read_picture(picture: Picture, name: str, channels: Channels = "rgb") -> np.ndarray:
    """Return a picture that ``check_picture`` accepts as ``(H, W, 3)`` uint8 RGB.

    Files and PIL images are turned upright by their EXIF orientation; grey, palette and CMYK
    pixels become RGB, 16-bit grey is scaled to 8 bits, alpha is dropped. Float tensors are rounded
    to 8 bits. An ndarray in RGB order may come back as it is, not copied.

    Args:
        picture: A path, PIL image, ndarray ``(H, W, 3)`` or tensor ``(3, H, W)``; or the address
            of a file elsewhere (``tfclip.remote``).
        name: What a message calls it; a file is called by its path.
        channels: ``"rgb"`` or ``"bgr"``, the order of an ndarray.

    Raises:
        FrameError: The picture is damaged or of an unknown format.
    """
    opened = open_picture(picture, name, channels)
    return opened if isinstance(opened, np.ndarray) else np.array(opened)


def open_picture(
    picture: Picture,
    name: str,
    channels: Channels = "rgb",
    *,
    draft: tuple[int, int] | None = None,
) -> Pixels:
    """Return a picture as ``read_picture`` does, or as the RGB image that Pillow has made of it.

    Resizing the image saves copying it into an array and back. Pictures may be opened by several
    threads at once.

    Args:
        picture: As in ``read_picture``.
        name: As in ``read_picture``.
        channels: As in ``read_picture``.
        draft: A height and width in pixels: a JPEG file that is at least twice as large is decoded
            at a half, quarter or eighth of its size, never smaller than this. It is faster, and not
            quite what resizing the whole picture gives.

    Raises:
        FrameError: The picture is damaged or of an unknown format.
    """
    if isinstance(picture, np.ndarray):
        return np.ascontiguousarray(picture[..., ::-1] if channels == "bgr" else picture)
    if isinstance(picture, torch.Tensor):
        return _from_tensor(picture.detach())
    if isinstance(picture, Image.Image):
        with _HELD_IMAGES:
            return _decode(picture, name)
    try:
        image = Image.open(io.BytesIO(read_address(picture)) if is_address(picture) else picture)
    except TFCLIPError:
        raise
    except Exception as error:  # see _decode
        raise FrameError(f"{picture} is not a readable image: {_reason(error)}") from error
    with image:
        check_size(*image.size, str(picture))
        # An MPO is a JPEG of a phone or stereo camera; its first picture is the one meant.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise FrameError(
                f"{picture} must hold one picture, got several; save them as images or as a video"
            )
        if draft is not None and image.format == "JPEG":
            _draft(image, draft)
        return _decode(image, str(picture))


def _draft(image: Image.Image, size: tuple[int, int]) -> None:
    """Let a JPEG decode at a fraction of its size, which is stored before it is turned upright."""
    height, width = reversed(size) if _orientation(image) in _QUARTER_TURNS else size
    image.draft(None, (width, height))


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _from_tensor(pixels: torch.Tensor) -> np.ndarray:
    if pixels.is_floating_point():
        pixels = pixels.float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()


def _decode(image: Image.Image, name: str) -> Pixels:
    # Pillow's decoders raise whatever a damaged file makes them stumble over: OSError, SyntaxError,
    # struct.error, zlib.error, IndexError, DecompressionBombError... so all are caught.
    try:
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in _SIXTEEN_BITS:
            grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 is 255 * 257
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        if image.mode not in ("I", "F"):
            return _to_rgb(image)
    except Exception as error:
        raise FrameError(f"{name} is not a readable image: {_reason(error)}") from error
    raise FrameError(f"{name} must have 8 or 16 bits per channel, got 32 (mode {image.mode!r})")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "La":
        image = image.convert("LA")
    elif "transparency" in image.info:  # a palette with alpha only converts to RGB through RGBA
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Return what a message should quote of an error: not its number and path again."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
