"""Chat templates: messages to text and tokens, with the tokens that the assistant wrote marked.

A template is Jinja, rendered in the environment that transformers gives it, so that a
conversation has the tokens it has everywhere else. Rendered text already holds the special
tokens, BOS too if the model wants one, and is therefore encoded without the tokenizer's own
frame, as `apply_chat_template` does: no doubled BOS.

A message is a mapping with `role` and `content` (or `tool_calls`).
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from research.core.tree import nearest
from research.data.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

# The names under which a message may carry its reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


class _Trace:
  """What a rendering has put out so far: its length, and the generation blocks in it."""

  def __init__(self) -> None:
    self.length = 0
    self.blocks: list[tuple[int, str]] = []  # first character, text


_trace: contextvars.ContextVar[_Trace] = contextvars.ContextVar("_trace")


class _GenerationBlocks(jinja2.ext.Extension):
  """`{% generation %}…{% endgeneration %}` encloses what the assistant writes."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("_record"), [], [], body).set_lineno(line)

  def _record(self, caller: Callable[[], str]) -> str:
    text = caller()
    trace = _trace.get()
    trace.blocks.append((trace.length, text))
    return text


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """Jinja's own filter escapes HTML; a prompt is not HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_GenerationBlocks, jinja2.ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _raise
  environment.globals["strftime_now"] = lambda style: datetime.datetime.now().strftime(style)
  return environment


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
  return _environment().from_string(template)


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
  """The messages as templates see them: without absent values, reasoning under each name."""
  seen = []
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise ValueError(f"message {i} is a {type(message).__name__}, not a mapping with a 'role'")
    present = {key: value for key, value in message.items() if value is not None}
    if "role" not in present:
      raise ValueError(f"message {i} has no 'role', only {', '.join(map(repr, present))}")
    role = present["role"]
    if role not in ROLES:
      raise ValueError(
        f"message {i} has role {role!r}, not one of {', '.join(ROLES)}{nearest(str(role), ROLES)}"
      )
    if "content" not in present and "tool_calls" not in present:
      raise ValueError(f"message {i} ({role}) has neither 'content' nor 'tool_calls'")
    reasoning = next((present[name] for name in _REASONING if name in present), None)
    if reasoning is not None:
      present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
    seen.append(present)
  return seen


def _render(
  template: str,
  messages: Sequence[Message],
  add_generation_prompt: bool,
  tools: Sequence[Mapping[str, Any]] | None,
  special_tokens: Mapping[str, str],
) -> tuple[str, list[tuple[int, int]]]:
  """The text, and the half-open character ranges of its generation blocks."""
  checked = _checked(messages)
  trace = _Trace()
  _trace.set(trace)
  pieces = []
  try:
    for piece in _compiled(template).generate(
      messages=checked,
      tools=tools,
      documents=None,
      add_generation_prompt=add_generation_prompt,
      **special_tokens,
    ):
      pieces.append(piece)
      trace.length += len(piece)
  except (jinja2.TemplateError, TypeError) as error:
    # TypeError: what `'text' + content` raises when the content is not text.
    raise ValueError(f"chat template: {' '.join(str(error).split())}") from error
  text = "".join(pieces)
  spans = [(start, start + len(block)) for start, block in trace.blocks]
  for (start, end), (_, block) in zip(spans, trace.blocks, strict=True):
    if text[start:end] != block:  # within a macro, a filter or another block
      raise ValueError("chat template: a generation block is nested where it cannot be located")
  return text, spans


def render(
  template: str,
  messages: Sequence[Message],
  add_generation_prompt: bool = False,
  tools: Sequence[Mapping[str, Any]] | None = None,
  **special_tokens: str,
) -> str:
  """`messages` as text, exactly as transformers' `apply_chat_template` renders them.

  Args:
    template: Jinja source.
    messages: the conversation.
    add_generation_prompt: ends with the header of an assistant's turn.
    tools: JSON schemas of functions the model may call.
    **special_tokens: `bos_token`, `eos_token` and so on (`Tokenizer.special_tokens`).

  Raises:
    ValueError: a message without role or content, an unknown role, a template that is
      wrong or that refuses these messages.
  """
  return _render(template, messages, add_generation_prompt, tools, special_tokens)[0]


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
  """The ids of `messages` and the header of the assistant's turn that is to be generated."""
  return _encode(tokenizer, _text(tokenizer, messages, add_generation_prompt=True))


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
  """The ids of a string, framed as the tokenizer frames text, unless it begins with BOS itself."""
  bos = tokenizer.special_tokens.get("bos_token")
  return tokenizer.encode(text, add_special=bos is None or not text.startswith(bos))


def encode_messages(
  tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
  """The ids of a conversation, and a mask that is 1 at tokens which the assistant generates.

  If the template has generation blocks, these are the tokens that touch one. Otherwise an
  assistant's message is what follows the messages before it and a generation prompt, up to
  and with its last EOS token where it has one: EOS is learned, the newline that a template
  puts behind it is not, for it is never generated.

  Raises:
    ValueError: as `render`; no chat template; or a template without generation blocks in
      which a message changes how those before it are rendered, so that no prefix can be cut.
  """
  template = _template(tokenizer)
  text, spans = _render(template, messages, False, None, tokenizer.special_tokens)
  ids, offsets = tokenizer.encode_spans(text)
  mask = [0] * len(ids)
  if re.search(r"\{%[-+]?\s*generation\b", template):
    for i, (first, end) in enumerate(offsets):
      mask[i] = int(any(first < stop and end > start for start, stop in spans))
    return ids, mask
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    last = i + 1 == len(messages)
    before = _text(tokenizer, messages[:i], add_generation_prompt=True)
    after = text if last else _text(tokenizer, messages[: i + 1])
    if not after.startswith(before) or not text.startswith(after):
      raise ValueError(
        f"chat template: the text before message {i} (assistant) is rendered differently once"
        " later messages are there, so its tokens cannot be told apart; the template needs"
        " {% generation %} blocks"
      )
    start = _common_prefix(_encode(tokenizer, before), ids)
    end = len(ids) if last else _common_prefix(_encode(tokenizer, after), ids)
    _mark(mask, ids, start, end, tokenizer.eos_ids)
  return ids, mask


def encode_completion(
  tokenizer: Tokenizer,
  prompt: str | Sequence[Message],
  completion: str | Sequence[Message],
) -> tuple[list[int], list[int]]:
  """The ids of prompt and completion, and a mask that is 1 at the completion's.

  See `encode_joined`; of messages, the mask ends with the last EOS token.

  Raises:
    ValueError: as `encode_joined`.
  """
  ids, start = encode_joined(tokenizer, prompt, completion)
  mask = [0] * len(ids)
  _mark(mask, ids, start, len(ids), tokenizer.eos_ids)
  return ids, mask


def encode_joined(
  tokenizer: Tokenizer,
  prompt: str | Sequence[Message],
  completion: str | Sequence[Message],
) -> tuple[list[int], int]:
  """The ids of prompt and completion, and how many of them are the prompt's.

  The boundary is TRL's: the longest common prefix of the prompt's tokens and those of the
  whole. Strings are joined as they are, framed as the tokenizer frames text, and end with
  EOS. Lists of messages are rendered by the chat template, the prompt with a generation
  prompt.

  Raises:
    ValueError: as `encode_messages`; a string with a list; strings without an EOS token.
  """
  if isinstance(prompt, str) and isinstance(completion, str):
    ids = encode_text(tokenizer, prompt + completion)
    if not tokenizer.eos_ids:
      raise ValueError("the tokenizer has no EOS token to end a completion with")
    if not ids or ids[-1] not in tokenizer.eos_ids:
      ids.append(tokenizer.eos_ids[0])
    return ids, _common_prefix(encode_text(tokenizer, prompt), ids)
  if isinstance(prompt, str) or isinstance(completion, str):
    raise ValueError(
      "prompt and completion must both be strings or both lists of messages, not"
      f" {type(prompt).__name__} and {type(completion).__name__}"
    )
  before = _text(tokenizer, prompt, add_generation_prompt=True)
  text = _text(tokenizer, [*prompt, *completion])
  if not text.startswith(before):
    raise ValueError(
      "chat template: the prompt is rendered differently once the completion is there, so the"
      " completion's tokens cannot be told apart"
    )
  ids = _encode(tokenizer, text)
  return ids, _common_prefix(_encode(tokenizer, before), ids)


def _template(tokenizer: Tokenizer) -> str:
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template; use prompt and completion as strings")
  return tokenizer.chat_template


def _text(
  tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False
) -> str:
  return render(
    _template(tokenizer), messages, add_generation_prompt, None, **tokenizer.special_tokens
  )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
  return tokenizer.encode(text, add_special=False)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
  """The number of leading ids on which the two agree."""
  length = min(len(first), len(second))
  return next((i for i in range(length) if first[i] != second[i]), length)


def _mark(
  mask: list[int], ids: Sequence[int], start: int, end: int, eos_ids: Sequence[int]
) -> None:
  """Sets `mask` from `start` to the last EOS token before `end`, or to `end` without one."""
  ends = [i for i in range(start, end) if ids[i] in eos_ids]
  stop = ends[-1] + 1 if ends else end
  mask[start:stop] = [1] * (stop - start)
