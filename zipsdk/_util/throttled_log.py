"""Log events that may come in millions in few lines."""

from __future__ import annotations

import logging
import re
import threading
import time

from zipsdk._util import forks

#: Seconds from one line about an event to the next.
INTERVAL = 60.0
#: Most characters of a reason.
MAX_REASON = 200
# an exception may quote a whole array; a shape has at most eight numbers
_ARRAY = re.compile(r"\[\s*(\[|([-+.\deE]+[,\s]+){8}|[-+.\deE,\s]*\.\.\.).*", re.DOTALL)


class ThrottledLog:
    """Count events, and log each kind at once and then every `INTERVAL` seconds at most, while it happens.

    Args:
        logger: gets a warning with the event, the number since the last line about it, and the latest reason.
    """

    def __init__(self, logger: logging.Logger):
        self._logger = logger
        self.after_fork()
        forks.track(self)

    def after_fork(self) -> None:
        """Start anew; see `zipsdk._util.forks.Forkable`."""
        self._lock = threading.Lock()
        #: time of the next line and number of unlogged events, by event
        self._events: dict[str, tuple[float, int]] = {}

    def warn(self, event: str, reason: str, count: int = 1) -> None:
        """Count an event, and log it if a line is due, with the shortened reason."""
        now = time.monotonic()
        with self._lock:
            due, unlogged = self._events.get(event, (now, 0))
            unlogged += count
            if now < due:
                self._events[event] = due, unlogged
                return
            self._events[event] = now + INTERVAL, 0
        self._logger.warning("%s: %d; latest: %s", event, unlogged, shorten(reason))


def shorten(text: str) -> str:
    """Return one line of `MAX_REASON` characters at most, without the values of arrays."""
    line = " ".join(_ARRAY.sub("[...]", text).split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."
