"""Images of any kind, by one door: which files of a folder are images, how each is read, and squares made of them."""

from app.data.reading.raster import Raster, Unreadable
from app.data.reading.readers import READERS, Reader, read_raster
from app.data.reading.search import Found, find_images, left_out
from app.data.reading.squares import Squares, instruments, read_squares
from app.data.reading.summary import Reading

__all__ = [
    "READERS",
    "Found",
    "Raster",
    "Reader",
    "Reading",
    "Squares",
    "Unreadable",
    "find_images",
    "instruments",
    "left_out",
    "read_raster",
    "read_squares",
]
