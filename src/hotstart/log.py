"""One event, one line: `12:30:01 info  memory plan  weights_gib=61.2 pages=41984`."""

import logging
import os
import sys

__all__ = ["debug", "error", "info", "warning"]

_logger = logging.getLogger("hotstart")


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now (a progress bar stands in for it), so that stdout holds answers only."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _install_handler() -> None:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    _logger.addHandler(handler)
    _logger.setLevel(os.environ.get("HOTSTART_LOGGING_LEVEL", "INFO").upper())
    _logger.propagate = False


def _line(event: str, fields: dict[str, object]) -> str:
    return "  ".join([event, " ".join(f"{key}={_value(value)}" for key, value in fields.items())]).rstrip()


def _value(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text else text


def debug(event: str, **fields: object) -> None:
    _logger.debug(_line(event, fields))


def info(event: str, **fields: object) -> None:
    _logger.info(_line(event, fields))


def warning(event: str, **fields: object) -> None:
    _logger.warning(_line(event, fields))


def error(event: str, **fields: object) -> None:
    _logger.error(_line(event, fields))


_install_handler()
