"""HTTP/1.1 as uvicorn speaks it over httptools, with a bound on a request's head, which neither of them has."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Protocol"]

MAX_HEAD_BYTES = 64 * 2**10


class Protocol(HttpToolsProtocol):
    _num_head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of this request is too long.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._num_head_bytes = True, 0
        super().on_message_complete()
