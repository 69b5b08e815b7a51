"""Conversations: `Session` asks with everything that was said before, and remembers answers that are whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec
from msgspec.structs import replace

from aicortex import settings, shelf
from aicortex._core.failover import AttemptFailed
from aicortex._core.ollama import full_name
from aicortex._core.result import Result
from aicortex.ask import aanswer, achecked, answer
from aicortex.errands import Errand, Steps, run
from aicortex.errors import AICortexError, RegistryError
from aicortex.fleet import ASK_SECONDS, FRESH_SECONDS, finding, has_registry, knowledge
from aicortex.registry.sessions import Kept, Turn
from aicortex.request import Call, check_names, check_session, checked
from aicortex.trimming import SMALLEST_CONTEXT, Size, Space, count_left_out, letters_of, tokens_of
from aicortex.warn import warn

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from aicortex._core.server import Server
    from aicortex.astream import AsyncStream
    from aicortex.request import Arguments, ChatArguments
    from aicortex.stream import Stream

T = TypeVar("T")
OWN = {"messages": "is the conversation's own", "session": "is the conversation's own"}
OF_A_CALL = {"images": "belongs to a call"}
ID_BYTES = 8


class Session:
    """A conversation: each question is asked with what was said before it.

        session = Session(model="llama3.2:3b", system="Answer in one sentence.")
        session.chat("How do black holes form?")
        session.chat("And how do they end?")

    Without a name it lives in memory. With one it lives in the registry's file, a row for each turn, and goes on where
    it was, in this process or another; several may use it at once. What is kept is the `system` text and the turns;
    the `defaults`, any arguments of `chat`, are this object's own, as in a `Client`. A `system` given later, here or
    to a call, takes the place of the one before with the next answer that is kept.

    An answer joins the conversation when it is whole: one that failed or was cancelled leaves it as it was, unless
    `keep_partial` is true, which keeps what came as a turn that is marked. Questions that are under way at once do not
    know of each other; each joins with its answer when that is whole.

    `context_length` is how many tokens the model takes. Without it that is `num_ctx` of the `options`, else what the
    server that answered last says of the loaded model, else what the registry knows. The oldest turns are left out of
    what is sent when there is no room for all and the answer (`max_tokens`, or a quarter); the stream's `start` event
    says how many, as `trimmed_turns` in its `meta`. What is kept stays whole.

    Raises ValueError and TypeError for wrong arguments. Whatever reads or writes a named one raises RegistryError when
    its file cannot be used.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        system: str | None = None,
        context_length: int | None = None,
        keep_partial: bool = False,
        **defaults: Any,  # Any: the arguments of `chat`, checked here
    ) -> None:
        _check(defaults, {**OWN, **OF_A_CALL}, "Session")
        checked("a prompt", system=system, **defaults)
        if context_length is not None and (type(context_length) is not int or context_length < 1):
            raise ValueError(f"context_length must be a number of tokens, not {context_length!r:.40}")
        self._name = None if name is None else _checked_name(name)
        self._shelf: shelf.Shelf = shelf.Memory(Kept()) if name is None else shelf.Stored(name)
        self._affinity = name or os.urandom(ID_BYTES).hex()
        self._given = system  # until it is kept
        self._context_length = context_length
        self._keep_partial = keep_partial
        self._defaults = defaults
        self._lengths: dict[tuple[str, str], tuple[int, float]] = {}  # by server and model, and when it was asked

    def __repr__(self) -> str:
        return "<Session>" if self._name is None else f"<Session {self._name!r}>"

    @property
    def name(self) -> str | None:
        """The name under which the conversation is stored, None for one that lives in memory."""
        return self._name

    @property
    def system(self) -> str | None:
        """The system's words, which are sent in front of the conversation."""
        return self._given or self._shelf.read().system

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that are kept now, oldest first, as copies; see `Turn`."""
        return deepcopy(self._shelf.read().turns)

    @property
    def history(self) -> list[dict[str, Any]]:  # Any: JSON
        """The messages of all turns, oldest first, without the system's: copies, ready for `chat(messages=…)`."""
        return [message for turn in self.turns for message in turn.messages]

    @overload
    def chat(self, prompt: str, *, stream: Literal[True], **arguments: Unpack[ChatArguments]) -> Stream: ...
    @overload
    def chat(
        self, prompt: str, *, format: type[T], stream: Literal[False] = False, **arguments: Unpack[Arguments]
    ) -> T: ...
    @overload
    def chat(
        self,
        prompt: str,
        *,
        format: Literal["json"] | Mapping[str, Any],  # Any: JSON
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> Any: ...  # Any: JSON
    @overload
    def chat(
        self, prompt: str, *, format: None = None, stream: Literal[False] = False, **arguments: Unpack[Arguments]
    ) -> str: ...
    @overload
    def chat(self, prompt: str, *, stream: bool, **arguments: Unpack[ChatArguments]) -> Any: ...  # Any: as above
    def chat(self, prompt: str, *, stream: bool = False, **arguments: Any) -> Any:  # Any: as above
        """Ask the next question, as the function `chat` does; what the call says goes before the session's defaults."""
        call = checked(_asked(prompt), **self._told(arguments))
        return answer(run(self._going_on(call)), stream=stream)

    @overload
    async def achat(self, prompt: str, *, stream: Literal[True], **arguments: Unpack[ChatArguments]) -> AsyncStream: ...
    @overload
    async def achat(
        self, prompt: str, *, format: type[T], stream: Literal[False] = False, **arguments: Unpack[Arguments]
    ) -> T: ...
    @overload
    async def achat(
        self,
        prompt: str,
        *,
        format: Literal["json"] | Mapping[str, Any],  # Any: JSON
        stream: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> Any: ...  # Any: JSON
    @overload
    async def achat(
        self, prompt: str, *, format: None = None, stream: Literal[False] = False, **arguments: Unpack[Arguments]
    ) -> str: ...
    @overload
    async def achat(self, prompt: str, *, stream: bool, **arguments: Unpack[ChatArguments]) -> Any: ...  # Any: as above
    async def achat(self, prompt: str, *, stream: bool = False, **arguments: Any) -> Any:  # Any: as above
        """Ask the next question, as the function `achat` does; files are read and written aside of the event loop."""
        from aicortex._aio import aside  # asyncio takes 30 ms to import

        call = await achecked(_asked(prompt), self._told(arguments))
        return await aanswer(await aside.run(self._going_on(call)), stream=stream)

    def reset(self) -> None:
        """Forget all turns; the system's words stay."""
        self._shelf.reset()

    def fork(self, name: str | None = None) -> Self:
        """Return another conversation that begins with these turns, in memory or under a new name.

        It has the same defaults. Raises ValueError when the name is taken.
        """
        return self._with(self._kept(), name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the system's words and the turns into a file of JSON, whole or not at all; raises OSError."""
        shelf.save(path, self._kept())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        context_length: int | None = None,
        keep_partial: bool = False,
        **defaults: Any,  # Any: the arguments of `chat`, checked here
    ) -> Self:
        """Return the conversation that `save` wrote, in memory or stored under a new name.

        Raises OSError for a file that cannot be read, and ValueError for one that is no session or of a newer version,
        and when the name is taken.
        """
        kept = shelf.load(path)
        empty = cls(context_length=context_length, keep_partial=keep_partial, **defaults)
        return empty._with(kept, name)

    @staticmethod
    def names() -> list[str]:
        """Return the names of the conversations that are stored, that which was used last first."""
        return shelf.names()

    @staticmethod
    def remove(name: str) -> None:
        """Take a stored conversation away; raises ValueError, with close matches, where there is none of this name."""
        shelf.remove(name)

    def _kept(self) -> Kept:
        kept = self._shelf.read()
        return Kept(self._given or kept.system, kept.turns)

    def _with(self, kept: Kept, name: str | None) -> Self:
        """Return a session like this one that has other turns."""
        made = type(self)(name, context_length=self._context_length, keep_partial=self._keep_partial, **self._defaults)
        if name is None:
            made._shelf = shelf.Memory(kept)
        else:
            shelf.Stored(name).create(kept)
        return made

    def _told(self, arguments: dict[str, Any]) -> dict[str, Any]:  # Any: the arguments of `chat`
        _check(arguments, OWN, "chat")
        return {**self._defaults, **arguments}

    def _going_on(self, call: Call) -> Steps[Call]:
        """Decide what is sent: the conversation as it is now, and the question that a checked call asks."""
        kept: Kept = self._shelf.read() if self._name is None else (yield Errand(object(), self._shelf.read))
        *told, question = call.question.messages
        given = told[0]["content"] if told else self._given
        system = [{"role": "system", "content": given or kept.system}] if given or kept.system else []
        left_out = yield from self._left_out(call, kept.turns, system, question)
        messages = [message for turn in kept.turns[left_out:] for message in turn.messages]
        asked = Turn(
            (question,),
            os.urandom(ID_BYTES).hex(),
            call.question.model,
            turns_before=len(kept.turns),
            left_out=left_out,
        )
        return replace(
            call,
            question=replace(call.question, messages=[*system, *messages, question]),
            session=self._affinity,
            note={"trimmed_turns": left_out} if left_out else {},
            over=partial(self._over, asked, given),
        )

    def _left_out(
        self, call: Call, turns: Sequence[Turn], system: Sequence[dict[str, Any]], question: dict[str, Any]
    ) -> Steps[int]:  # Any: JSON
        """Decide how many of the oldest turns are not sent."""
        if not turns:
            return 0
        tools = call.question.tools
        fixed = letters_of(system) + (len(msgspec.json.encode(tools)) if tools else 0)
        asked = letters_of([question])
        sizes = [Size(letters_of(turn.messages), turn.context, turn.turns_before, turn.left_out) for turn in turns]
        about = max(tokens_of(fixed + asked + sum(size.letters for size in sizes)), sizes[-1].context)
        length = yield from self._length(call, turns, is_urgent=about > SMALLEST_CONTEXT // 2)
        return count_left_out(sizes, Space(length, call.question.limit, fixed, asked)) if length else 0

    def _length(self, call: Call, turns: Sequence[Turn], *, is_urgent: bool) -> Steps[int]:
        """Decide how many tokens the model takes, 0 where nobody says; a server is asked only when it is urgent."""
        told = self._context_length or call.question.options.get("num_ctx")
        if isinstance(told, int) and told > 0:
            return told
        last = next((turn for turn in reversed(turns) if turn.server), None)
        if last is None or not is_urgent:
            return 0
        model = call.question.model or last.model
        known, since = self._lengths.get((last.server, model), (0, -FRESH_SECONDS))
        if not known and perf_counter() - since >= FRESH_SECONDS:
            fleet = yield from finding(call.servers)
            server = next((server for server in fleet.servers if server.label == last.server), None)
            if server is not None:
                known = yield Errand(("context", last.server, model), partial(_ask_length, server, _names(model)))
                self._lengths[last.server, model] = known, perf_counter()
        return known or _recorded_length(last.server, _names(model))

    def _over(
        self,
        asked: Turn,
        system: str | None,
        outcome: Result | AICortexError,
        gained: Sequence[dict[str, Any]],  # Any: JSON
    ) -> None:
        """Keep a turn whose answer is over, if it is to be kept; raises RegistryError for a whole one."""
        if isinstance(outcome, Result):
            self._keep(_whole(asked, outcome), system)
        elif self._keep_partial and gained:
            try:
                self._keep(replace(asked, messages=(*asked.messages, *gained), is_partial=True, at=time()), system)
            except RegistryError as error:  # must not take the place of what broke the answer
                warn(f"the partial answer is not kept: {error}")

    def _keep(self, turn: Turn, system: str | None) -> None:
        self._shelf.add(turn, system)
        if system is not None:
            self._given = None


def _settled(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:  # Any: JSON
    """Return what an answer added, without calls at its end that nobody answered: the next question follows."""
    *before, last = messages
    if "tool_calls" not in last:
        return messages
    return [*before, {"role": "assistant", "content": last["content"]}] if last["content"] else before


def _whole(asked: Turn, result: Result) -> Turn:
    """Return a turn with its answer."""
    last = result.turns[-1] if result.turns else {}
    return replace(
        asked,
        messages=(*asked.messages, *_settled(result.messages)),
        model=result.model,
        server=result.server,
        usage=result.usage,
        context=int(last.get("prompt_tokens", 0) + last.get("completion_tokens", 0)),
        at=time(),
    )


def _ask_length(server: Server, names: frozenset[str]) -> int:
    """Return with what context length a server has a model in memory, 0 when it does not say."""
    from aicortex.tools.asking import ask_json

    try:
        reply = ask_json(server, "/api/ps", _AllLoaded, due=perf_counter() + ASK_SECONDS)
    except AttemptFailed:
        return 0
    return next((loaded.context_length for loaded in reply.models or () if full_name(loaded.name) in names), 0)


class _Loaded(msgspec.Struct, frozen=True):
    """One model in the reply of `/api/ps`; older servers do not tell the context length."""

    name: str = ""
    context_length: int = 0


class _AllLoaded(msgspec.Struct, frozen=True):
    models: list[_Loaded] | None = None


def _recorded_length(label: str, names: frozenset[str]) -> int:
    """Return what the registry knows of a model's context length, 0 for nothing."""
    entries = knowledge(is_needed=False).models.get(label, ()) if has_registry() else ()
    return next((entry.context_length for entry in entries if full_name(entry.name) in names), 0)


def _names(model: str) -> frozenset[str]:
    """Return the full names of the models that a name may stand for."""
    return frozenset(map(full_name, settings.models_meant(model)))


def _asked(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise ValueError("a conversation goes on with a prompt: give one, of text")
    return prompt


def _check(arguments: Mapping[str, object], refused: Mapping[str, str], function: str) -> None:
    """Refuse what is no argument of `chat`, or is none in a conversation; raises TypeError."""
    check_names(function, arguments)
    for name in arguments:
        if name in refused:
            raise TypeError(f"{function}() of a Session takes no {name!r}: that {refused[name]}")


def _checked_name(name: str) -> str:
    check_session(name)
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"a session's name is one line without space around it, not {name!r:.60}")
    return name
