"""The report of a run: collect → compare → plots → page."""
