"""Moved to `igpt_tf.report`."""

from igpt_tf.report import make_workdir, percent, table, write_json

__all__ = ["make_workdir", "percent", "table", "write_json"]
