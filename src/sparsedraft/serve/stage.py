"""The `serve` command: load the models, start the engine, listen."""

import copy
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.serve.counters import Counters
from sparsedraft.serve.engine import Engine
from sparsedraft.serve.models import load_pairs, names_of, policy_of
from sparsedraft.serve.options import ServeOptions
from sparsedraft.serve.service import Service
from sparsedraft.speculate import routes

KEY = "SPARSEDRAFT_API_KEY"
OWN = ("127.0.0.1", "localhost", "::1")  # addresses that only this machine reaches


def serve(options: ServeOptions) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM; {"url", "requests"}: where, and how many were answered.

    UserError for models that cannot be loaded or do not go together, and for an address that cannot be had.
    """
    try:
        import llguidance  # noqa: F401  (for the first answer that has to follow a grammar)
        import uvicorn
        import uvicorn.config

        from sparsedraft.serve.app import application
    except ImportError:
        raise UserError("serve needs a web server: pip install 'sparsedraft[serve]'.") from None
    key = options.api_key or os.environ.get(KEY) or None
    if options.host not in OWN and key is None:
        raise UserError(f"--host {options.host} can be reached from other machines: give --api-key, or set {KEY}, too.")
    with _listening(options) as listener, running(options) as service:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = application(service, key, (*options.allowed_host, options.host))
        logging = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
        logging["handlers"]["access"]["stream"] = "ext://sys.stderr"  # stdout is for the result
        config = uvicorn.Config(
            app,
            log_config=logging,
            log_level=options.log_level,
            timeout_graceful_shutdown=int(options.grace) + 5,
        )
        console.print(f"{service.names.target} is served at {url}/v1; Ctrl-C ends it", soft_wrap=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends by them, and then raises them again
            signal.signal(number, lambda *_: None)

        class Server(uvicorn.Server):
            """Uvicorn's, which ends the engine's work in order before its connections."""

            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                threading.Thread(target=service.engine.stop, args=(options.grace,), daemon=True).start()
                super().handle_exit(sig, frame)

        Server(config).run(sockets=[listener])
        return {"url": url, "requests": service.engine.counters.requests}


@contextmanager
def running(options: ServeOptions) -> Iterator[Service]:
    """The service of these models, its engine running; stopped at the end of the block."""
    pairs, names = load_pairs(options), names_of(options)
    named = dict(zip(names.loaded, pairs[1:], strict=True))
    counters = Counters()
    piece = options.prompt_piece if options.parallel > 1 else None  # alone, nobody waits
    if len(named) > 1:
        decoder = routes.open_decoder(
            named, options.parallel, lambda name: policy_of(options, named[name]), Sampling(), piece
        )
    else:
        decoder = pairs[-1].open_decoder(options.parallel, policy_of(options, pairs[-1]), Sampling(), piece)
    engine = Engine(decoder, options.parallel, options.queue, counters)
    engine.start()
    try:
        by_name = dict(zip((None, *names.loaded), pairs, strict=True))
        yield Service(by_name, engine, names, options.max_new_tokens, options.seeded_k)
    finally:
        engine.stop(options.grace)


@contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """A socket that listens where the options say; taken before the models are loaded, which takes long."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
            listener.listen()
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "it is no address"
            raise UserError(
                f"--host {options.host} --port {options.port} cannot be listened on ({why}): give another."
            ) from None
        yield listener
    finally:
        listener.close()
