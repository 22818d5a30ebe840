"""What writes: a loaded model with the flags of the command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from research.loop import subject as subject_lib
from research.loop import writing


class Writer:
  """A loaded model with the flags of the command.

  Raises:
    ValueError: the model cannot write as the flags ask, or as `subject.load` and `writing`.
  """

  def __init__(self, args: argparse.Namespace):
    from research import generation, models
    from research.core import cache

    cache.keep_compiled()
    self.args = args
    self.subject = subject_lib.load(args)
    if not (args.input or args.chat) or self.subject.bank is None:
      self.subject = subject_lib.one(self.subject, args.use)
    if isinstance(self.subject.model, models.Encoder):
      family = self.subject.model.config.family
      raise ValueError(f"{self.subject.name} is a {family}, which does not write; name a decoder")
    self.tokenizer = self.subject.tokenizer
    self.as_text = args.text or self.tokenizer.chat_template is None
    self.sampler = writing.sampler(args)
    self.draft = writing.draft(args, self.subject)
    self._write = writing.writer(args, self.subject, self.sampler, self.draft)
    self.stop = generation.StopStrings(self.tokenizer, tuple(args.stop))
    self.streams = isinstance(self.subject.model, models.Decoder)
    if args.chat and not self.streams:
      raise ValueError(f"{self.subject.name} is an encoder-decoder, for --prompt and --input")
    if args.chat and self.as_text:
      raise ValueError(f"{self.subject.name} has no chat template; use --prompt")

  def encode(self, prompt: Any) -> list[int]:
    """Token ids of a text or of messages, ready to be gone on with."""
    from research.data import chat

    if isinstance(prompt, str):
      if self.as_text:
        return chat.encode_text(self.tokenizer, prompt)
      prompt = [{"role": "user", "content": prompt}]
    if self.args.system and prompt and prompt[0].get("role") != "system":
      prompt = [{"role": "system", "content": self.args.system}, *prompt]
    return chat.encode_prompt(self.tokenizer, prompt)

  def which(self, adapters: Sequence[str | None]) -> list[int] | None:
    """The slots of each prompt's adapter, None where there is no bank."""
    return None if self.subject.bank is None else self.subject.bank.numbers(adapters)

  def complete(
    self,
    prompts: Sequence[Any],
    adapters: Sequence[str | None] = (),
    first: int = 0,
    progress: Any = lambda _: None,
  ) -> list[list[dict[str, Any]]]:
    """For each prompt its samples, each with `text`, and `log_probs` if they are wanted."""
    found = self._write(
      self.subject.model,
      self.subject.variables,
      [self.encode(prompt) for prompt in prompts],
      first_prompt=first,
      which=self.which(adapters),
      progress=progress,
    )
    rows: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for completion in found:
      sample = self._scored(self.stop.text(completion.tokens), completion.log_probs)
      rows[completion.prompt].append(sample)
    return rows

  def choose(
    self, prompts: Sequence[Any], adapters: Sequence[str | None] = ()
  ) -> list[list[dict[str, Any]]]:
    """For each prompt the best of the choices given, as `complete` has its one sample."""
    from research import generation

    choices = [self.tokenizer.encode(text, add_special=False) for text in self.args.choice]
    found = generation.choose(
      self.subject.model,
      self.subject.variables,
      [self.encode(prompt) for prompt in prompts],
      [choices] * len(prompts),
      by=self.args.choose_by,
      batch_size=self.args.batch_size,
      which=self.which(adapters),
    )
    return [
      [self._scored(self.args.choice[choice.best], choice.log_probs[choice.best])]
      for choice in found
    ]

  def score(
    self, prompts: Sequence[Any], texts: Sequence[str], adapters: Sequence[str | None]
  ) -> list[list[dict[str, Any]]]:
    """For each prompt its completion, as `complete` has its one sample."""
    from research import generation

    found = generation.score(
      self.subject.model,
      self.subject.variables,
      [self.encode(prompt) for prompt in prompts],
      [self.tokenizer.encode(text, add_special=False) for text in texts],
      batch_size=self.args.batch_size,
      which=self.which(adapters),
    )
    return [[self._scored(*pair)] for pair in zip(texts, found, strict=True)]

  def _scored(self, text: str, log_probs: Sequence[float]) -> dict[str, Any]:
    sample: dict[str, Any] = {"text": text}
    if self.args.log_probs:
      sample["log_probs"] = [round(value, 6) for value in log_probs]
    return sample

  def stream(self) -> Any:
    """A `generation.Stream` of the model."""
    from research import generation

    stream = generation.Stream(self.subject.model, self.subject.variables)
    if slots := self.which([self.args.use]):
      stream.use(slots[0])
    return stream

  def pieces(self, stream: Any, prompt: Any) -> Iterator[str]:
    """An answer, in printable pieces as they come."""
    reader = self.stop.reader()
    tokens = stream(
      self.encode(prompt),
      self.sampler,
      max_new_tokens=self.args.max_new_tokens,
      eos_ids=self.tokenizer.eos_ids,
      seed=self.args.seed,
    )
    for token in tokens:
      yield reader.push(token)
      if reader.stopped:
        return
    yield reader.flush()
