"""The report of a run: collect → compare → plots → page."""

from app.report.page import ReportSummary, make_report

__all__ = ["ReportSummary", "make_report"]
