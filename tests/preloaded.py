"""What the processes of `tests.programs` have imported before they become a program."""

from igpt_tf import runtime

runtime.import_tensorflow()
