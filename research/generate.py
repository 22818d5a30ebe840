"""Writes with a model, an adapter or a run: one prompt, a chat, or a file of prompts.

  python -m research.generate --model=smollm2-135m-instruct --prompt "What is a monad?"
  python -m research.generate --run=runs/quickstart --chat
  python -m research.generate --run=runs/quickstart --input=in.jsonl --output=out.jsonl
  python -m research.generate --model=smollm2-135m-instruct --benchmark --batch-size=8

Several adapters are named, --adapter NAME=DIR, and rows of a file name theirs in a column
`adapter`; --use names that of a prompt, a chat or rows that name none, which otherwise have the
base's answer. A run with adapters of each task has them by the tasks' names.

A prompt is a user's message where the model has a chat template, and a text to go on with where
it has none or with --text. In a chat, Ctrl-C ends an answer, /reset forgets the conversation,
/adapter NAME changes who answers, and /exit or Ctrl-D leaves. Rows of a file have `messages` or
`prompt` (a text, or messages); they are written with `completion`, or with `completions` where
--samples is above 1. A file that was begun is gone on with, row after row.

With --choice nothing is written freely: the answer is the most probable of the texts given. With
--score rows have their `completion`, whose tokens' log-probabilities are told. With --benchmark
nothing is shown but how fast it writes.

Exit codes: 0 done, 2 something asked for cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.loop import subject as subject_lib
from research.loop import writing

_PART = 64  # rows of a file that are written at a time
_QUEUE = 1024  # and with --continuous, which must not wait for the last rows of each part


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command with these arguments (by default the process's), and returns its code."""
  args = _arguments(list(sys.argv[1:] if argv is None else argv))
  try:
    writer = _Writer(args)
    if args.benchmark:
      _benchmark(writer)
    elif args.chat:
      _chat(writer)
    elif args.input:
      _file(writer, args.input, args.output)
    else:
      _prompt(writer, args.prompt)
  except (ValueError, FileNotFoundError, RuntimeError) as error:
    if args.traceback:
      raise
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
  summary, _, more = (__doc__ or "").partition("\n")
  parser = argparse.ArgumentParser(
    prog="python -m research.generate",
    description=summary,
    epilog=more,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  subject_lib.add_arguments(parser, "what writes")
  parser.add_argument("--use", metavar="NAME", help="which of the named adapters writes")
  what = parser.add_argument_group("what about")
  what.add_argument("--prompt", metavar="TEXT", help="one prompt")
  what.add_argument("--chat", action="store_true", help="a conversation at the terminal")
  what.add_argument("--input", type=Path, metavar="FILE", help="a JSONL file of prompts")
  what.add_argument("--output", type=Path, metavar="FILE", help="where --input's rows go")
  what.add_argument("--system", metavar="TEXT", help="a system message ahead of prompt or chat")
  what.add_argument("--text", action="store_true", help="prompts are texts, not messages")
  what.add_argument(
    "--choice", action="append", default=[], metavar="TEXT", help="a possible answer; repeatable"
  )
  what.add_argument("--score", action="store_true", help="score the completions of --input's rows")
  what.add_argument(
    "--choose-by", choices=("sum", "mean"), default="sum", help="of its tokens' log-probs (sum)"
  )
  what.add_argument("--log-probs", action="store_true", help="tell those of the tokens too")
  writing.add_arguments(parser)
  measure = parser.add_argument_group("--benchmark")
  measure.add_argument(
    "--benchmark",
    action="store_true",
    help="latency and throughput of --batch-size random prompts at a time, as a table and, with "
    "--output, as JSON; with --continuous completions are of unequal lengths",
  )
  measure.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="(64)")
  measure.add_argument("--requests", type=int, metavar="N", help="prompts (two batches)")
  parser.add_argument("--traceback", action="store_true", help="on an error, where it was found")
  args = parser.parse_args(argv)
  if bool(args.run) == bool(args.model):
    parser.error("give one of --model and --run")
  if args.run and args.adapter:
    parser.error("--run names its adapter itself; leave --adapter out")
  if sum((args.prompt is not None, args.chat, args.input is not None, args.benchmark)) != 1:
    parser.error("give one of --prompt, --chat, --input and --benchmark")
  if bool(args.input) != bool(args.output) and not args.benchmark:
    parser.error("--input and --output go together")
  if args.choice and (args.chat or args.samples > 1 or args.stop):
    parser.error("--choice takes no --chat, --samples or --stop")
  if args.score and (not args.input or args.choice or args.samples > 1 or args.stop):
    parser.error("--score takes --input, and no --choice, --samples or --stop")
  writing.check_arguments(parser, args)
  if args.method and (args.chat or args.choice or args.score):
    parser.error(f"{args.method} takes no --chat, --choice or --score")
  if args.method == "--continuous" and not (args.input or args.benchmark):
    parser.error("--continuous is for many prompts: --input or --benchmark")
  if args.benchmark:
    if args.method in ("--beams", "--penalty-alpha"):
      parser.error(f"--benchmark takes no {args.method}")
    if args.stop or args.samples > 1 or args.choice or args.score or args.system or args.text:
      parser.error("--benchmark takes no --stop, --samples, --choice, --score, --system or --text")
  args.log_probs |= args.score
  if args.cache and (args.chat or args.choice or args.score):
    parser.error("--cache takes no --chat, --choice or --score")
  if args.chat and (args.samples > 1 or args.text or args.log_probs):
    parser.error("--chat takes no --samples, --text or --log-probs")
  return args


class _Writer:
  """A loaded model with the flags of a command."""

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
        return self.tokenizer.encode(prompt)
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


def _benchmark(writer: _Writer) -> None:
  from research.generation import benchmark

  args = writer.args
  report = benchmark.measure(
    writer.subject.model,
    writer.subject.variables,
    writer.sampler,
    batch_size=args.batch_size,
    prompt_tokens=args.prompt_tokens,
    new_tokens=args.max_new_tokens,
    requests=2 * args.batch_size if args.requests is None else args.requests,
    draft=writer.draft,
    draft_tokens=writing.draft_tokens(args),
    continuous=args.continuous,
    cache=writing.cache(args),
    seed=args.seed,
  )
  print(f"{writer.subject.name}\n\n{report.table()}")
  if args.output:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    told = {"name": writer.subject.name, **dataclasses.asdict(report)}
    args.output.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\nsaved {args.output}")


def _prompt(writer: _Writer, prompt: str) -> None:
  args = writer.args
  plain = args.samples == 1 and not (args.log_probs or args.choice or args.method or args.cache)
  if plain and writer.streams:
    for piece in writer.pieces(writer.stream(), prompt):
      print(piece, end="", flush=True)
    print()
    return
  found = writer.choose([prompt]) if args.choice else writer.complete([prompt])
  for number, sample in enumerate(found[0]):
    print(f"--- {number + 1}\n{sample['text']}" if args.samples > 1 else sample["text"])
    if "log_probs" in sample:
      print(f"log-probabilities: {sample['log_probs']}")


def _chat(writer: _Writer) -> None:
  bank = writer.subject.bank
  print(f"{writer.subject.name}: /reset forgets, /exit leaves, Ctrl-C ends an answer")
  if bank is not None:
    print(f"/adapter NAME changes who answers: {', '.join(bank.names)}; /adapter alone is the base")
  stream = writer.stream()
  messages: list[dict[str, str]] = []
  while True:
    try:
      said = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
      print()
      return
    if said == "/exit":
      return
    if said == "/reset":
      messages = []
      continue
    if bank is not None and said.split(maxsplit=1)[:1] == ["/adapter"]:
      try:
        stream.use(bank.numbers([said.removeprefix("/adapter").strip() or None])[0])
      except ValueError as error:
        print(error)
      continue
    if not said:
      continue
    messages.append({"role": "user", "content": said})
    answer = ""
    try:
      for piece in writer.pieces(stream, messages):
        answer += piece
        print(piece, end="", flush=True)
    except KeyboardInterrupt:
      print(" [stopped]", end="")
    print()
    messages.append({"role": "assistant", "content": answer})


def _file(writer: _Writer, source: Path, target: Path) -> None:
  import tqdm

  args = writer.args
  rows = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
  prompts = [_row_prompt(row, index) for index, row in enumerate(rows)]
  texts = [_row_completion(row, index) for index, row in enumerate(rows)] if args.score else []
  adapters = _row_adapters(rows, writer)
  done = _rows_done(target, len(rows))
  target.parent.mkdir(parents=True, exist_ok=True)
  total = len(rows) * args.samples
  with target.open("a") as file, tqdm.tqdm(total=total, unit="completion") as bar:
    bar.update(done * args.samples)
    size = _QUEUE if args.continuous else _PART
    for start in range(done, len(rows), size):
      part = slice(start, start + size)
      if args.score:
        found = writer.score(prompts[part], texts[part], adapters[part])
      elif args.choice:
        found = writer.choose(prompts[part], adapters[part])
      else:
        found = writer.complete(prompts[part], adapters[part], start, bar.update)
      if args.score or args.choice:
        bar.update(len(found))
      for row, samples in zip(rows[part], found, strict=True):
        file.write(json.dumps(_filled(row, samples, args), ensure_ascii=False) + "\n")
      file.flush()


def _row_prompt(row: Mapping[str, Any], index: int) -> Any:
  prompt = row.get("prompt", row.get("messages"))
  if prompt is None:
    raise ValueError(f"row {index} has neither `prompt` nor `messages`: {', '.join(row)}")
  return prompt


def _row_adapters(rows: Sequence[Mapping[str, Any]], writer: _Writer) -> list[str | None]:
  """The name of each row's adapter: its own, or that of --use."""
  names = [row.get("adapter") or writer.args.use for row in rows]
  for index, name in enumerate(names):
    if name is not None and writer.subject.bank is None:
      raise ValueError(f"row {index} names the adapter {name!r}: give it as --adapter {name}=DIR")
    try:
      writer.which([name])
    except ValueError as error:
      raise ValueError(f"row {index}: {error}") from error
  return names


def _row_completion(row: Mapping[str, Any], index: int) -> str:
  if not isinstance(row.get("completion"), str):
    raise ValueError(f"row {index} has no `completion`, a text to score: {', '.join(row)}")
  return row["completion"]


def _rows_done(target: Path, total: int) -> int:
  """The rows that `target` holds; half a line, as a killed process leaves it, is cut off."""
  if not target.exists():
    return 0
  data = target.read_bytes()
  whole = data[: data.rfind(b"\n") + 1]
  if len(whole) != len(data):
    target.write_bytes(whole)
  done = whole.count(b"\n")
  if done > total:
    raise ValueError(f"{target} holds {done} rows, more than the input's {total}; name another")
  return done


def _filled(row: Mapping[str, Any], samples: list[dict[str, Any]], args: Any) -> dict[str, Any]:
  if args.samples > 1:
    return {**row, "completions": samples}
  filled = {**row, "completion": samples[0]["text"]}
  if args.log_probs:
    filled["log_probs"] = samples[0]["log_probs"]
  return filled


if __name__ == "__main__":
  sys.exit(main())
