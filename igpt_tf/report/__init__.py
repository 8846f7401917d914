"""A run's folder as one self-contained HTML page."""

from igpt_tf.report.page import write_page

__all__ = ["write_page"]
