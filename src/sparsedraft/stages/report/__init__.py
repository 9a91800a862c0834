"""The report: tables, plots and a worked example of a run, as one self-contained HTML file and as Markdown."""
