"""Garbage of start-up: collected once, before anybody waits, and what is left is never looked at again."""

import gc

__all__ = ["spare_collections"]


def spare_collections() -> None:
    """Libraries and models are hundreds of thousands of objects: a full collection while a request runs would cost it
    as much as several steps, and the first one after start-up is due soon.
    """
    gc.collect()
    gc.freeze()
