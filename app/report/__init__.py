"""The report of a run: collect → compare → plots → page."""

from app.report.page import ReportSummary, write_report

__all__ = ["ReportSummary", "write_report"]
