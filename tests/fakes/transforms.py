"""Transforms that users might write."""

from __future__ import annotations

from zipsdk import Blur


class Global(Blur):
    """As a transform of one's own: nothing says that it is local."""

    local = False
