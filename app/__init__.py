"""BYOL and BYOL+ pretraining on unlabelled medical images, and its downstream evaluation."""

__version__ = "0.1.0"
