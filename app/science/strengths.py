"""How strong the corruptions of test images are: five steps each, from the weakest; corruptions.py has what they do.

But for blur the steps are those of MedMNIST-C (Di Salvo et al. 2024). Lengths are shares of an image's side, so that
images of any size are made worse alike.
"""

from __future__ import annotations

from collections.abc import Mapping

STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # standard deviation, of intensities in [0, 1]; MedMNIST-C's chest X-rays
    "blur": (0.02, 0.025, 0.03, 0.04, 0.05),  # of the Gaussian, of the side; weaker, as there, is nothing at 28 px
    "contrast": (0.9, 0.8, 0.7, 0.6, 0.4),  # what is left of it; MedMNIST-C's X-rays and ultrasound
    "brightness": (1.1, 1.2, 1.3, 1.4, 1.5),  # times the intensity; MedMNIST-C's chest X-rays
    "resolution": (0.8, 0.6, 0.4, 0.3, 0.25),  # pixels of a side that are left; MedMNIST-C's pathology
}
