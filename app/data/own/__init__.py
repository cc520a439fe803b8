"""A user's own images: what they are (``check``), and a labelled set made of them (``import``)."""

from app.data.own.check import Check, check_images
from app.data.own.duplicates import near_test_images
from app.data.own.importing import Import, import_images
from app.data.own.labels import LabelSource

__all__ = ["Check", "Import", "LabelSource", "check_images", "import_images", "near_test_images"]
