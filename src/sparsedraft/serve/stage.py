"""The `serve` command: load the models, start the engine, listen."""

import copy
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.names import LOOKUP
from sparsedraft.serve.counters import Counters
from sparsedraft.serve.engine import Engine
from sparsedraft.serve.options import ServeOptions
from sparsedraft.serve.service import ALONE, Names, Service
from sparsedraft.speculate import routes
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.writers.loaded import LoadedModel

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
    pairs = load_pairs(options)
    names = _names(options)
    named = dict(zip(names.loaded, pairs[1:], strict=True))
    counters = Counters()
    piece = options.prompt_piece if options.parallel > 1 else None  # alone, nobody waits
    if len(named) > 1:
        decoder = routes.open_decoder(named, options.parallel, lambda: _policy(options), Sampling(), piece)
    else:
        decoder = pairs[-1].open_decoder(options.parallel, _policy(options), Sampling(), piece)
    engine = Engine(decoder, options.parallel, options.queue, counters)
    engine.start()
    try:
        by_name = dict(zip((None, *names.loaded), pairs, strict=True))
        yield Service(by_name, engine, names, options.max_new_tokens, options.seeded_k)
    finally:
        engine.stop(options.grace)


def _policy(options: ServeOptions) -> Policy:
    return Auto(reads_freely=options.parallel > 1) if options.k is None else Constant(options.k)


def load_pairs(options: ServeOptions) -> list[Pair]:
    """The target alone, and with each drafter in their order, as far as they are to be loaded."""
    names = ("dtype", "device", "runtime", "cache", "template_args")
    loading = {name: getattr(options, name) for name in names}
    target = LoadedModel.load(options.target, **loading)
    pairs = [Pair.of(target, None, "auto", Sampling())]
    for name in options.drafter:
        other = name if name == LOOKUP else LoadedModel.load(name, **loading)
        pair = Pair.of(target, other, "auto", Sampling()).reading(options.drafter_window, options.drafter_sinks)
        pairs.append(pair.with_lookup() if options.lookup and name != LOOKUP else pair)
    return pairs


def _names(options: ServeOptions) -> Names:
    """What clients call the models, each by another name: never by a path of this machine."""
    target, taken = options.served_name or Path(options.target).resolve().name, [ALONE]
    for drafter in options.drafter:
        name = Path(drafter).resolve().name if drafter != LOOKUP else LOOKUP
        name = f"{name}-drafter" if name in (target, ALONE) else name
        again = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}-{n}") not in taken)
        taken.append(name if again == 1 else f"{name}-{again}")
    return Names(target, tuple(taken[1:]))


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
