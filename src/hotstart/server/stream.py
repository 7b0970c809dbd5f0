"""How an answer is streamed, whatever its pieces are: events as tokens come, comments while none do, usage at will."""

from collections.abc import Callable
from typing import TypeVar

from msgspec import UNSET, UnsetType

from hotstart.server.answers import Usage
from hotstart.server.exchange import Exchange
from hotstart.server.generation import Choice, Generation
from hotstart.server.schemas import StreamOptions

__all__ = ["stream"]

Piece = TypeVar("Piece")


async def stream(
    exchange: Exchange,
    generation: Generation,
    options: StreamOptions | None,
    *,
    keep_alive_s: float,
    pieces_of: Callable[[list[Choice]], list[Piece]],
    chunk: Callable[[list[Piece], Usage | UnsetType | None], object],
    usage: Callable[[], Usage],
) -> None:
    """Until the generation has finished.  `pieces_of` tells what is new of the choices that have grown."""
    wants_usage = bool(options and options.include_usage)
    always = wants_usage and bool(options and options.continuous_usage_stats)
    no_usage = None if wants_usage else UNSET
    while not generation.finished:
        grown = await generation.grow(keep_alive_s)
        if not exchange.began_stream:
            await exchange.begin_stream()
        if not grown:
            await exchange.send_comment()
        pieces = pieces_of(grown)
        now = usage() if always else no_usage
        if pieces:
            await exchange.send_events(*(chunk([piece], now) for piece in pieces))
    if wants_usage:
        await exchange.send_events(chunk([], usage()))
    await exchange.end_stream()
