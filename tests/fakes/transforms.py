"""Fake a transform of a user."""

from __future__ import annotations

from zipsdk import Blur


class Global(Blur):
    """A blur that does not declare itself local."""

    local = False
