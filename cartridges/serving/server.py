"""The server: one engine behind the OpenAI API."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response

from cartridges import __version__
from cartridges.serving import errors
from cartridges.serving.address import listen
from cartridges.serving.cartridge_routes import cartridge_routes
from cartridges.serving.desk import Desk
from cartridges.serving.errors import Json
from cartridges.serving.gate import Gate
from cartridges.serving.metrics import Metrics
from cartridges.serving.openai_routes import openai_routes
from cartridges.serving.settings import Keys, ServeConfig
from cartridges.serving.tokasaurus_routes import tokasaurus_routes

if TYPE_CHECKING:
    from cartridges.engine.engine import Engine

END_S = 10.0  # for the last bytes, once nothing is written any more


def create_app(
    engine: "Engine", config: ServeConfig | None = None, keys: Keys | None = None, roots: Sequence[Path] = ()
) -> FastAPI:
    """The application. Its `state.desk` knows what is in work. `roots`: where cartridges may be added from."""
    config = config or ServeConfig.resolve()
    desk = Desk(engine, config, Metrics(engine))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        desk.draining = True
        await asyncio.to_thread(engine.close, 0.0)
        desk.close()

    app = FastAPI(title="cartridges", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.desk = desk
    errors.install(app)
    app.add_middleware(Gate, desk=desk, keys=keys or Keys())
    app.include_router(openai_routes(desk))
    app.include_router(tokasaurus_routes(desk))
    app.include_router(cartridge_routes(desk, roots))

    @app.get("/health")
    async def health() -> Json:
        """Whether replies are to be had."""
        if desk.draining:
            return Json({"status": "draining"}, 503)
        if not engine.is_alive:
            return Json({"status": "dead"}, 503)
        return Json({"status": "ok"})  # and no names: it is told without a key

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


class Server(uvicorn.Server):
    """Ends in order: nothing new is taken, what runs may finish for `drain_s`, what is left is told that it ends."""

    def __init__(self, app: FastAPI, config: ServeConfig, on_ready: Callable[[], None] = lambda: None) -> None:
        """`on_ready` is called when requests are answered."""
        self.desk: Desk = app.state.desk
        self.on_ready = on_ready
        settings: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
        limit = int(config.drain_s + END_S)
        super().__init__(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=limit, **settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.desk.draining = True
        closing = asyncio.ensure_future(asyncio.to_thread(self.desk.engine.close, self.desk.config.drain_s))
        await super().shutdown(sockets)
        if self.force_exit:  # a second SIGINT: nobody waits for replies any more
            self.desk.engine.abort()
        await closing

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGTERM and SIGINT end the server in order; a second SIGINT at once. Neither ends the process by itself."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(app: FastAPI, config: ServeConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` is told the URL."""
    with contextlib.closing(listen(config.host, config.port)) as listener:
        port = listener.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        Server(app, config, lambda: on_ready(f"http://{host}:{port}")).run(sockets=[listener])
