"""Images of any kind, by one door: which files of a folder are images, how each is read, and squares made of them."""

from app.data.reading.raster import Fit, Levels, NoImage, Raster, ReadOptions, Seen, Unreadable
from app.data.reading.readers import READERS, Reader, read_raster
from app.data.reading.search import Found, find_images, left_out
from app.data.reading.squares import Counted, Squares, instruments, read_squares, reason_of, uncounted
from app.data.reading.summary import ReadingSummary

__all__ = [
    "READERS",
    "Counted",
    "Fit",
    "Found",
    "Levels",
    "NoImage",
    "Raster",
    "ReadOptions",
    "Reader",
    "ReadingSummary",
    "Seen",
    "Squares",
    "Unreadable",
    "find_images",
    "instruments",
    "left_out",
    "read_raster",
    "read_squares",
    "reason_of",
    "uncounted",
]
