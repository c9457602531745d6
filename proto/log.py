"""Log events with fields, one line per change (structlog). JSON when not on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

# structlog takes rich along where it is installed, for coloured tracebacks that we do not use: 4 MiB in every process.
_HIDDEN = "rich" not in sys.modules
if _HIDDEN:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _HIDDEN:
    del sys.modules["rich"]

SECRET_FIELDS = frozenset({"token", "user_data", "key_pem", "secret", "password", "private_key"})


def hide_secrets(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace values whose field name says they are secret."""
    for field in SECRET_FIELDS & event.keys():
        event[field] = "<hidden>"
    return event


def configure(level: str = "info") -> None:
    """Send events to stderr. `level` is debug, info, warning or error."""
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_secrets,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a component; its name becomes the field `component`."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger(component=name)
    return bound
