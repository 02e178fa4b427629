"""The HTTP side: paths, event streams, errors in OpenAI's form. What is asked is checked before it gets here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

import tunesmith
from tunesmith.errors import nearest
from tunesmith.serve.answer import AnswerError
from tunesmith.serve.event_stream import EventStream, until_gone
from tunesmith.serve.guard import App, Guard
from tunesmith.serve.protocol import AnswerRequest, ChatRequest, Completion, ErrorBody, Health, ModelCard, ModelList
from tunesmith.serve.refusal import RefusalError
from tunesmith.serve.reply import ChatReply, Reply, TextReply
from tunesmith.serve.service import Service
from tunesmith.serve.text_protocol import TextCompletion, TextRequest

REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Something about the request is not right"},
    "5XX": {"model": ErrorBody, "description": "No answer can be given, or not now"},
}
ANSWERED = "There are POST /v1/chat/completions and /v1/completions, and GET /v1/models, /health, /metrics and /openapi.json"
STREAMED = {
    "description": "The answer; with stream: true, as events",
    "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},  # of each event
}


def make_app(service: Service, key: str | None = None, anywhere: bool = False) -> App:
    """Everything, in the order a request meets it: counted, guarded, answered.

    Args:
        key: what clients must send. anywhere: bound beyond loopback.
    """
    return service.metrics.counting(Guard(_inner_app(service), service.limits, key, anywhere))


def _inner_app(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(
        title="tunesmith", version=tunesmith.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses=REFUSED, redirect_slashes=False,
    )  # fmt: skip
    _add_errors(app)
    _add_watching(app, service)
    _add_models(app, service)

    @app.post("/v1/chat/completions", response_model=Completion, responses={200: STREAMED})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The assistant's next message."""
        return await _reply(service, body, request, ChatReply)

    @app.post("/v1/completions", response_model=TextCompletion, responses={200: STREAMED})
    async def complete(body: TextRequest, request: Request) -> Response:
        """How a text goes on."""
        return await _reply(service, body, request, TextReply)

    return app


async def _reply(service: Service, body: AnswerRequest, request: Request, form: type[Reply]) -> Response:
    talk = await service.begin(body)
    reply = form(talk)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(reply.events(usage), talk.close, service.limits.send_seconds)
    try:
        completion = await until_gone(reply.whole(), request.receive)
    finally:
        talk.close()
    return JSONResponse(completion) if completion else Response(status_code=499)  # nobody reads this


def _add_models(app: FastAPI, service: Service) -> None:
    tuned, base = service.names
    cards = {
        name: ModelCard(id=name, created=service.created, parent=parent, max_model_len=service.context)
        for name, parent in ((tuned, base), (base, None))
    }

    @app.get("/v1/models")
    async def models() -> ModelList:
        """What can be asked for."""
        return ModelList(data=list(cards.values()))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """One of them."""
        if name not in cards:
            raise RefusalError(404, f"There is no model {name!r} here.", param="model", code="model_not_found")
        return cards[name]


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Health:
        """Whether answers can be given."""
        if service.worker.over:
            raise RefusalError(503, service.worker.over, code="stopped")
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        living = service.worker.living
        gauges = {
            "living": ("Answers that are growing", living),
            "queue": ("Answers that wait for their first token", max(0, service.open - living)),
        }
        return PlainTextResponse(service.metrics.text(gauges), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusalError)
    async def refused(request: Request, refusal: RefusalError) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(AnswerError)
    async def failed(request: Request, error: AnswerError) -> JSONResponse:
        return JSONResponse(RefusalError(500, str(error), code="failed").body(), 500)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        told = f"This server failed with {type(error).__name__}; its terminal says more."
        return JSONResponse(RefusalError(500, told, code="failed").body(), 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        refusal = _explained(error, TextRequest if request.url.path == "/v1/completions" else ChatRequest)
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_unanswerable(request, error).body(), error.status_code, error.headers)


def _unanswerable(request: Request, error: HTTPException) -> RefusalError:
    """A path, method or body that is none here, in words."""
    path = request.url.path
    words = {
        404: f"There is no {path} here. {ANSWERED}.",
        405: f"{path} is not asked by {request.method}. {ANSWERED}.",
        400: "The body is not JSON in UTF-8.",
    }
    return RefusalError(error.status_code, words.get(error.status_code, str(error.detail)))


def _explained(error: RequestValidationError, asked: type[AnswerRequest]) -> RefusalError:
    """The most telling of what a body has wrong with it, in words that quote no values."""
    # Where one of several types would do, what is wrong within one says more than that it is not another.
    worst = max(error.errors(), key=lambda found: (len(found["loc"]), not found["type"].endswith("_type")))
    kind, loc = worst["type"], worst["loc"][1:]
    if kind == "json_invalid":
        return RefusalError(400, f"The body is not JSON: {worst['ctx']['error']} at character {loc[0]}.", code="not_json")
    # Between the names of fields stand those of the types that were tried.
    named = [str(part) for part in loc[:-1] if not (isinstance(part, str) and ("[" in part or "-" in part or part == "str"))]
    param = ".".join([*named, *(str(part) for part in loc[-1:] if "[" not in str(part) and part not in ("str", "constrained-str"))])
    if kind == "extra_forbidden":
        meant = "" if "." in param else nearest(param, asked.model_fields)
        return RefusalError(400, f"There is no field {param!r}{meant}.", param=param, code="unknown_field")
    if param in asked.not_here and kind != "missing" and not kind.endswith("_type"):
        field = param.partition(".")[0]
        return RefusalError(400, f"{param}: {asked.not_here[param]}. Leave {field} out.", param=param, code="wrong_value")
    what = worst["msg"].removeprefix("Value error, ")
    if not param and ": " in what:
        param = what.partition(": ")[0]
    message = f"{param}: {what.removeprefix(param + ': ')}." if param else f"The body is not as it should be: {what}."
    return RefusalError(400, message, param=param or None, code="missing_field" if kind == "missing" else "wrong_value")
