"""Data as numpy arrays: MedMNIST files, own data, unlabelled images, downloads, phantoms, seeded subsets."""

from app.data.catalog import SIZES, TASKS, Known, catalog, file_names, known, licence_of, parse_task
from app.data.datasets import SPLITS, Dataset, Split, default_roots, find_file, load_dataset, take_subset
from app.data.download import fetch, file_name
from app.data.files import is_archive
from app.data.overlap import fingerprints, say_overlap, shared_test_images
from app.data.phantoms import PHANTOM_COUNTS, is_phantom, make_phantoms, write_phantoms
from app.data.subsets import class_members, draw_overlap, few_shot_draw, stratified_subset, uniform_subset
from app.data.unlabelled import Unlabelled, load_unlabelled

__all__ = [
    "PHANTOM_COUNTS",
    "SIZES",
    "SPLITS",
    "TASKS",
    "Dataset",
    "Known",
    "Split",
    "Unlabelled",
    "catalog",
    "class_members",
    "default_roots",
    "draw_overlap",
    "fetch",
    "few_shot_draw",
    "file_name",
    "file_names",
    "find_file",
    "fingerprints",
    "is_archive",
    "is_phantom",
    "known",
    "licence_of",
    "load_dataset",
    "load_unlabelled",
    "make_phantoms",
    "parse_task",
    "say_overlap",
    "shared_test_images",
    "stratified_subset",
    "take_subset",
    "uniform_subset",
    "write_phantoms",
]
