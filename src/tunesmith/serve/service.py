"""From a checked request to growing answers: which model, whether there is room, how its tokens are chosen, the limits."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace

from tunesmith.errors import DataError
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session, room_for
from tunesmith.serve.answer import Answer, AnswerError, Ask, Piece, Pieces
from tunesmith.serve.limits import Limits
from tunesmith.serve.logprobs import TokenTexts
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.prompts import Prompts
from tunesmith.serve.protocol import AnswerRequest, Usage
from tunesmith.serve.refusal import RefusalError
from tunesmith.serve.worker import Worker, decoders


class Talk:
    """The answers to one request and the places they take, which `close` gives back. model: the name it was asked by. each: answers
    to each prompt, side by side in ``answers``."""

    def __init__(self, service: "Service", model: str, prompts: int, each: int) -> None:
        self.service, self.model, self.each = service, model, each
        self.answers: list[Answer] = []
        self.began = time.monotonic()
        self._pieces, self._places = Pieces(), prompts * each  # places that it has still
        self._growing: dict[int, Answer] = {}  # those that have not ended, by index
        self._otherwise = "left"
        service.open += self._places

    def begin(self, asks: list[Ask]) -> None:
        """Begin the answers to these prompts."""
        texts, stop_ids = self.service.texts, self.service.stop_ids
        several = [replace(ask, sampling=ask.sampling.nth(number)) for ask in asks for number in range(self.each)]
        self.answers = [Answer(ask, texts, stop_ids, self._pieces, index) for index, ask in enumerate(several)]
        self._growing = dict(enumerate(self.answers))
        self.service.worker.submit(self.answers)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answers as they come; the last piece of each has a finish. Raises AnswerError if the model failed."""
        try:
            async for piece in self._pieces.read(len(self.answers)):
                if piece.finish:
                    self._end(piece.index, piece.finish)
                yield piece
        except AnswerError:
            self._otherwise = "failed"
            raise

    @property
    def usage(self) -> Usage:
        prompts = sum(len(answer.ask.prompt) for answer in self.answers[:: self.each])
        return Usage.of(prompts, sum(answer.tokens for answer in self.answers))

    def close(self) -> None:
        """Those that still grow end at the next token; nothing is left to do if it is closed already."""
        for index in list(self._growing):
            self._end(index, self._otherwise)
        self.service.open -= self._places  # of answers that never began
        self._places = 0

    def _end(self, index: int, end: str) -> None:
        """Count an answer, and then give its place to others."""
        answer = self._growing.pop(index, None)
        if answer is None:  # closed meanwhile
            return
        answer.gone = True
        prompt = 0 if index % self.each else len(answer.ask.prompt)
        self.service.metrics.answered(self.model, prompt, answer.tokens, time.monotonic() - self.began, end)
        self._places -= 1
        self.service.open -= 1


class Service:
    """Answers requests with one session.

    Args:
        tuned, base: the names the two models are asked by.

    Attributes:
        open: answers that grow or wait. context: tokens the model can see.
    """

    def __init__(self, session: Session, tuned: str, base: str, limits: Limits = Limits()) -> None:
        self.limits, self.metrics, self.created = limits, Metrics(), int(time.time())
        self.names = {tuned: False, base if base != tuned else f"{base}-base": True}
        self.context = session.context
        self.worker = Worker(decoders(session, limits.slots))
        tokenizer = session.renderer.tokenizer
        self.texts, self.stop_ids = TokenTexts(tokenizer), frozenset(session.stop_ids)
        self.prompts = Prompts(tokenizer, limits.render_seconds)
        self.open = 0

    async def begin(self, request: AnswerRequest) -> Talk:
        """Begin the answers.

        Raises:
            RefusalError: there is no such model, no room, or a prompt cannot be answered.
        """
        if request.model not in self.names:
            known = " and ".join(repr(name) for name in self.names)
            raise RefusalError(
                404, f"There is no model {request.model!r} here; {known} are.", param="model", code="model_not_found"
            )
        self._check_places(request.prompts * request.each)
        talk = Talk(self, request.model, request.prompts, request.each)
        try:
            prompts = await self.prompts.of(request)
            asks = [self._ask(request, prompt, name) for prompt, name in zip(prompts, request.names, strict=True)]
            if self.worker.over:
                raise RefusalError(503, self.worker.over, code="stopped")
            talk.begin(asks)
        except BaseException:
            talk.close()
            raise
        return talk

    def _check_places(self, asked: int) -> None:
        """Raises RefusalError if so many more answers are too many; to a server that is idle they never are."""
        places = self.limits.slots + self.limits.queue
        if self.open and self.open + asked > places:
            told = f"{self.open} answers grow or wait, and there are {places} places."
            raise RefusalError(503, told, code="busy", headers={"Retry-After": "2"})

    def _ask(self, request: AnswerRequest, prompt: list[int], name: str) -> Ask:
        sampling = self._sampling(request, len(prompt), name)
        return Ask(prompt, sampling, request.stops, self.names[request.model], request.top)

    def _sampling(self, request: AnswerRequest, prompt: int, field: str) -> Sampling:
        try:
            told = {} if field == "messages" else {"fix": "Shorten it.", "what": f"{field} is"}
            room = room_for(prompt, self.context, **told)
        except DataError as error:
            raise RefusalError(400, str(error), param=field, code="context_length_exceeded") from error
        most = min(room, self.limits.answer)
        if request.longest is not None and request.longest[1] > most:
            name, asked = request.longest
            seen = f"{prompt:,} tokens of {field} leave {room:,} of {self.context:,}"
            raise RefusalError(
                400, f"{name} is {asked:,}; {seen}, and this server gives {self.limits.answer:,} at most.", param=name,
                code="context_length_exceeded" if asked > room else "too_many_tokens",
            )  # fmt: skip
        return Sampling(
            max_new_tokens=request.longest[1] if request.longest else min(most, request.usual or self.limits.usual),
            temperature=0.0 if request.greedy else request.temperature or 0.0,
            top_p=request.top_p or 1.0,
            top_k=request.top_k or 0,
            seed=None if request.seed is None else request.seed % 2**63,
        )
