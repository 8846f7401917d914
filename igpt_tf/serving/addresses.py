"""Where a served model is, and what is said if it is not."""

import dataclasses
import math
import re

from igpt_tf.errors import InputError, one_line


@dataclasses.dataclass(frozen=True)
class Address:
    """A model of a server.

    Attributes:
        server: "HOST:PORT".
        model: Its name there.
        version: A number of it; the newest if None.
        timeout: Seconds to wait for an answer.

    Raises:
        InputError: One of them cannot be.
    """

    server: str
    model: str
    version: int | None = None
    timeout: float = 300.0

    def __post_init__(self):
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", self.server):
            raise InputError(f"the server must be HOST:PORT. Received: server={self.server}")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise InputError(f"the timeout must be positive. Received: timeout={self.timeout}")

    def unreachable(self, reason) -> InputError:
        """No connection, or no answer in time."""
        return InputError(
            f"no answer from the server ({one_line(str(reason))}); is it running there? "
            f"Received: server={self.server}, timeout={self.timeout:g}"
        )

    def unknown(self, said: str) -> InputError:
        """The server does not know the model or its version."""
        version = "" if self.version is None else f", version={self.version}"
        return InputError(
            f"the server has no such model ({one_line(said)}). "
            f"Received: server={self.server}, model={self.model}{version}"
        )

    def foreign(self) -> InputError:
        """It answers, but not as TensorFlow Serving with a model of ours."""
        return InputError(
            "the server does not answer as TensorFlow Serving does; REST and gRPC have different "
            f"ports. Received: server={self.server}"
        )
