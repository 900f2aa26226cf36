"""Text to tokens and back.

A Hugging Face directory brings ``tokenizer.json`` (read by the `tokenizers` package) and perhaps a chat
template (Jinja). A model of random weights has neither: then a token is a byte of UTF-8, and ids that are
no byte show as ``<id>``, so that every front end works on every model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from simulator.errors import ConfigurationError, InputError

__all__ = ["ByteTokenizer", "Detokenizer", "FileTokenizer", "Tokenizer", "load_tokenizer"]

Messages = Sequence[Mapping[str, Any]]


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def chat(self, messages: Messages) -> str:
        """The prompt of a conversation, ready for the assistant's turn."""
        ...


class ByteTokenizer:
    """Bytes of UTF-8 as token ids 0 to 255."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        tokens = list(text.encode())
        if any(token >= self.vocab_size for token in tokens):
            raise ConfigurationError(
                f"text holds a byte above the model's vocabulary of {self.vocab_size} tokens"
            )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        parts: list[str] = []
        run = bytearray()
        for token in tokens:
            if token < 256:
                run.append(token)
                continue
            parts += [run.decode(errors="replace"), f"<{token}>"]
            run.clear()
        return "".join([*parts, run.decode(errors="replace")])

    def chat(self, messages: Messages) -> str:
        return plain_chat(messages)


class FileTokenizer:
    """``tokenizer.json`` of a Hugging Face directory, with its chat template where it has one."""

    def __init__(self, directory: str | Path) -> None:
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise ConfigurationError("reading tokenizer.json needs the package tokenizers") from error
        self.directory = Path(directory)
        self._backend = Backend.from_file(str(self.directory / "tokenizer.json"))
        self._template, self._variables = _chat_template(self.directory)

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Messages) -> str:
        if self._template is None:
            return plain_chat(messages)
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(self._template)
        return template.render(messages=messages, add_generation_prompt=True, **self._variables)


def load_tokenizer(directory: str | Path | None, vocab_size: int) -> Tokenizer:
    """The directory's tokenizer, or bytes where it has none."""
    if directory is not None and (Path(directory) / "tokenizer.json").is_file():
        return FileTokenizer(directory)
    return ByteTokenizer(vocab_size)


def plain_chat(messages: Messages) -> str:
    """A conversation without a template: ``role: text`` lines."""
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])


def _chat_template(directory: Path) -> tuple[str | None, dict[str, str]]:
    file = directory / "tokenizer_config.json"
    data: dict[str, Any] = {}
    if file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(file, f"must be JSON: {error}") from error
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    values = {name: data[name] for name in names if data.get(name)}
    variables = {name: v["content"] if isinstance(v, dict) else str(v) for name, v in values.items()}
    separate = directory / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8"), variables
    template = data.get("chat_template")
    return (template if isinstance(template, str) else None), variables


class Detokenizer:
    """Text of a growing list of tokens: only whole characters are let out.

    The text of a token may depend on its neighbours (a leading space, a character over several tokens), so
    new tokens are decoded together with the few before them, and what ends in a half character waits.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._tokens: list[int] = []
        self._context = 0
        self._done = 0

    @property
    def num_tokens(self) -> int:
        """Tokens added."""
        return len(self._tokens)

    def add(self, token: int) -> str:
        """Append *token*; the text that it completes."""
        self._tokens.append(token)
        before = self.tokenizer.decode(self._tokens[self._context : self._done])
        after = self.tokenizer.decode(self._tokens[self._context :])
        if after.endswith("\ufffd") and len(self._tokens) - self._done < LONGEST_CHARACTER:
            return ""
        self._context, self._done = self._done, len(self._tokens)
        new = after[len(before) :]
        self.text += new
        return new

    def flush(self) -> str:
        """What still waits for the rest of a character."""
        if self._done == len(self._tokens):
            return ""
        before = self.tokenizer.decode(self._tokens[self._context : self._done])
        new = self.tokenizer.decode(self._tokens[self._context :])[len(before) :]
        self._done = len(self._tokens)
        self.text += new
        return new


LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
