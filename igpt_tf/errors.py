"""The one error that is the user's to mend."""


class InputError(ValueError):
    """The input or the configuration is wrong.

    The message is one line: what is wrong, how to mend it, then `Received: name=value`.
    Programs print it without a traceback and exit with code 2 (see `igpt_tf.program`).
    """
