"""Every use of a private name of aiohttp or asyncio, one function or class per purpose.

The rest of the gateway uses public names only (tests/project/test_project.py holds that), so an upgrade of aiohttp is
checked here: this table, `selftest.py`, and tests/aiohttp_seam. All of it was verified against aiohttp 3.14.4 and
3.14.5 with asyncio's selector loop of Python 3.11.

Private names, by purpose:

  purpose                                     names                                               used in
  ------------------------------------------  --------------------------------------------------  --------------
  run the callbacks of ready sockets          asyncio BaseEventLoop._run_once, _ready,            loop.py
                                              _scheduled, _stopping; Handle._run, _cancelled;
                                              TimerHandle._when; EpollSelector._selector,
                                              _fd_to_key
  recognise plain TCP; serve a connection     asyncio _SelectorSocketTransport                    transports.py
  bytes received per call                     asyncio _SelectorSocketTransport.max_size           transports.py
  read what came over TLS before a reset      asyncio _SSLProtocolTransport._ssl_protocol,        tls.py
                                              SSLProtocol._incoming
  have TLS handshakes take turns              asyncio SSLProtocol._state, _transport;             handshake.py
                                              SSLProtocolState
  when all was sent over TLS                  asyncio SSLProtocol._transport, _app_protocol       transports.py
  is data buffered; a whole body              StreamReader._buffer                                streams.py
  stop receiving until resumed                BaseProtocol._pause_reading_for_buffer,             pausable.py
                                              _resume_reading_for_buffer, _buffer_paused
  has aiohttp's flow control paused reading   BaseProtocol._reading_paused                        pausable.py
  stop receiving, start again                 BaseProtocol._pause_transport_reading,              feed.py, server.py
                                              _resume_transport_reading, _reading_paused,
                                              _buffer_paused
  heads parsed, not yet handled               RequestHandler._messages, _max_msg_queue_size,      server.py,
                                              _msg_queue_resume_size                              messages.py
  refuse a head before it is complete         RequestHandler._parser                              server.py
  requests received so far                    RequestHandler._request_count                       server.py,
                                                                                                  messages.py
  a head that cannot be read                  web_protocol._ErrInfo                               messages.py
  loop over the messages of a connection;     RequestHandler._waiter, _task_handler, _close,      messages.py,
  have it wait on                             _force_close, _loop                                 server.py
  what waits for the end of a handler         RequestHandler._request_in_progress,                messages.py
                                              _handler_waiter
  what is called when a connection is lost    RequestHandler._current_request                     messages.py
  time for the next request                   RequestHandler._next_keepalive_close_time,          messages.py
                                              _keepalive_timeout, _keepalive_handle,
                                              _process_keepalive
  room in the parser's queue again            RequestHandler._resume_reading_if_drained           messages.py
  what came after a request to upgrade        RequestHandler._upgraded, _message_tail             messages.py
  wait for a full write buffer                BaseProtocol._drain_helper, _drain_waiter           messages.py
  body being received from an upstream        ResponseHandler._payload                            client.py
  has the connection failed                   ResponseHandler._exception, _should_close           client.py
  response received and not taken             DataQueue._buffer                                   client.py
  stop parsing a response                     ResponseHandler._parser                             client.py
  protocol class of new connections           TCPConnector._factory                               connector.py
  opening of a new connection                 TCPConnector._create_connection                     connector.py
  connections that are open                   BaseConnector._acquired                             connector.py
  context of TLS connections to upstreams     aiohttp.connector._SSL_CONTEXT_VERIFIED,            certificates.py
                                              TCPConnector._get_ssl_context

Names without an underscore that are not documented, but the gateway uses (here, in downstream and in upstream):

  RequestHandler (constructor, data_received, handle_error, force_close),
  StreamReader (set_read_chunk_size, feed_data, feed_eof, begin_http_chunk_receiving),
  ResponseHandler (set_response_params, read, feed_data, should_close, closed, set_exception),
  ClientRequest (constructor, connection_key),
  StreamWriter (constructor, chunked, enable_chunking, write, write_eof, drain),
  asyncio's SSLProtocol (constructor, buffer_updated, connection_lost).

Rejected: to vendor the few classes (security fixes of aiohttp would not arrive), and to write a server and client of
our own (the parser, the pool and MultipartReader are what aiohttp is used for).
"""

from gateway.aiohttp_seam.certificates import load_certificates
from gateway.aiohttp_seam.client import ClientConnection, detach_parser
from gateway.aiohttp_seam.connector import KeptConnections, LiveConnector, PoolRequest
from gateway.aiohttp_seam.handshake import connect_accepted_tls
from gateway.aiohttp_seam.heads import UNREADABLE, Message, ParsedResponse
from gateway.aiohttp_seam.loop import make_loop
from gateway.aiohttp_seam.messages import Take, no_request
from gateway.aiohttp_seam.pausable import PausableStream, is_reading_paused
from gateway.aiohttp_seam.selftest import check_behaviour, check_names
from gateway.aiohttp_seam.server import (
    DISCARD_BYTES,
    DISCARD_SECONDS,
    DISCARD_STEP_BYTES,
    HeadTooLarge,
    OnLeave,
    ServerConnection,
)
from gateway.aiohttp_seam.streams import has_buffered, peek_buffered, take_buffered
from gateway.aiohttp_seam.transports import (
    connect_accepted,
    count_unsent,
    drain_write_buffer,
    is_plain_tcp,
    set_receive_size,
    socket_of,
)

__all__ = [
    "DISCARD_BYTES",
    "DISCARD_SECONDS",
    "DISCARD_STEP_BYTES",
    "UNREADABLE",
    "ClientConnection",
    "HeadTooLarge",
    "KeptConnections",
    "LiveConnector",
    "Message",
    "OnLeave",
    "ParsedResponse",
    "PausableStream",
    "PoolRequest",
    "ServerConnection",
    "Take",
    "check_behaviour",
    "check_names",
    "connect_accepted",
    "connect_accepted_tls",
    "count_unsent",
    "detach_parser",
    "drain_write_buffer",
    "has_buffered",
    "is_plain_tcp",
    "is_reading_paused",
    "load_certificates",
    "make_loop",
    "no_request",
    "peek_buffered",
    "set_receive_size",
    "socket_of",
    "take_buffered",
]
