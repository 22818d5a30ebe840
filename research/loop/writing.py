"""How a model is to write, as commands are told: a sampler and a method, by flags."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from research.loop import subject as subject_lib

_DRAFT_TOKENS = 4

Write = Callable[..., list[Any]]
"""`(model, variables, prompts, *, first_prompt, which, progress)` -> completions, in order.

`which` is the slot of each prompt's adapter, None without a bank."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of samplers and of methods."""
  how = parser.add_argument_group("how")
  how.add_argument("--temperature", type=float, default=0.0, help="0: the most probable (0)")
  how.add_argument("--top-k", type=int, default=0, metavar="K", help="0: all tokens (0)")
  how.add_argument("--top-p", type=float, default=1.0, metavar="P", help="share kept (1)")
  how.add_argument("--min-p", type=float, default=0.0, metavar="P", help="share of the best's (0)")
  how.add_argument("--typical-p", type=float, default=1.0, metavar="P", help="share kept (1)")
  how.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1: none (1)")
  how.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="0: none (0)")
  how.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="0: none (0)")
  how.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends; repeatable")
  how.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(256)")
  how.add_argument("--samples", type=int, default=1, metavar="N", help="a prompt (1)")
  how.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows at a time (32)")
  how.add_argument(
    "--cache",
    choices=("int8", "int4", "int2"),
    help="keys and values in few bits, but for those of the last tokens",
  )
  how.add_argument("--seed", type=int, default=0, help="of the draws (0)")
  method = parser.add_argument_group("by which method; without one, token by token in batches")
  method.add_argument("--beams", type=int, default=1, metavar="N", help="1: no beam search (1)")
  method.add_argument("--length-penalty", type=float, default=1.0, metavar="X", help="of beams (1)")
  method.add_argument(
    "--early-stopping", choices=("false", "true", "never"), default="false", help="(false)"
  )
  method.add_argument(
    "--penalty-alpha",
    type=float,
    metavar="X",
    help="contrastive search among --top-k tokens: 0 to 1, how much similarity counts",
  )
  method.add_argument(
    "--draft", metavar="MODEL", help="speculative decoding: a smaller model of this vocabulary"
  )
  method.add_argument(
    "--draft-layers",
    type=_numbers,
    metavar="N,N,...",
    help="speculative decoding: the model itself with these layers alone; 0-9 is a range",
  )
  method.add_argument(
    "--draft-tokens", type=int, metavar="N", help=f"that are drafted at a time ({_DRAFT_TOKENS})"
  )
  method.add_argument(
    "--continuous", action="store_true", help="a finished row takes the next prompt at once"
  )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
  """Ends the command where methods are asked for that do not go together."""
  drafts = args.draft is not None, args.draft_layers is not None
  if all(drafts):
    parser.error("--draft is a model of its own; leave --draft-layers out")
  asked = {
    "--beams": args.beams != 1,
    "--penalty-alpha": args.penalty_alpha is not None,
    "--draft": drafts[0],
    "--draft-layers": drafts[1],
    "--continuous": args.continuous,
  }
  names = [name for name, wanted in asked.items() if wanted]
  if len(names) > 1:
    parser.error(f"{names[0]} and {names[1]} are two methods; give one")
  if args.draft_tokens is not None and not any(drafts):
    parser.error("--draft-tokens needs --draft or --draft-layers")
  args.method = names[0] if names else None
  if args.cache and args.method:
    parser.error(f"{args.method} takes no --cache")
  if args.method in ("--beams", "--penalty-alpha") and args.stop:
    parser.error(f"{args.method} takes no --stop")
  if args.method in ("--penalty-alpha", "--continuous") and args.samples > 1:
    parser.error(f"{args.method} takes no --samples")
  if args.method == "--penalty-alpha" and args.top_k < 1:
    parser.error("--penalty-alpha needs --top-k, the number of candidates")


def sampler(args: argparse.Namespace) -> Any:
  """The `generation.Sampler` of the flags.

  Raises:
    ValueError: a value cannot be, or the method draws nothing.
  """
  from research import generation

  names = [field.name for field in dataclasses.fields(generation.Sampler)]
  found = generation.Sampler(**{name: getattr(args, name) for name in names})
  if args.method == "--beams" and found != generation.Sampler():
    raise ValueError("beams are searched, not drawn; leave temperature, filters and penalties out")
  if args.method == "--penalty-alpha":
    found = dataclasses.replace(found, top_k=0)
    if found != generation.Sampler():
      raise ValueError("contrastive search draws nothing; leave all but --top-k out")
  return found


def draft(args: argparse.Namespace, subject: subject_lib.Subject) -> Any:
  """The `generation.Draft` of the flags, or None."""
  from research import generation

  if args.draft:
    other = subject_lib.load_model(args.draft, subject.model.dtype)
    return generation.Draft(other.model, other.variables)
  if args.draft_layers:
    return generation.drop_layers(subject.model, subject.variables, args.draft_layers)
  return None


def cache(args: argparse.Namespace) -> Any:
  """The `quant.CacheScheme` of the flags, or None."""
  from research import quant

  return quant.CacheScheme(args.cache) if args.cache else None


def draft_tokens(args: argparse.Namespace) -> int:
  """How many tokens are drafted at a time."""
  return _DRAFT_TOKENS if args.draft_tokens is None else args.draft_tokens


def writer(
  args: argparse.Namespace, subject: subject_lib.Subject, sampler: Any, draft: Any
) -> Write:
  """What writes by the method of the flags, with what `sampler` and `draft` made of them.

  Raises:
    ValueError: the method writes by one adapter and the subject has several.
  """
  from research import generation

  if subject.bank is not None and args.method not in (None, "--beams", "--penalty-alpha"):
    raise ValueError(f"{args.method} writes by one adapter: give one, as --adapter=DIR")
  same = {"max_new_tokens": args.max_new_tokens, "eos_ids": subject.tokenizer.eos_ids}
  same["batch_size"] = args.batch_size
  if args.method == "--beams":
    early = {"false": False, "true": True}.get(args.early_stopping, "never")
    search = partial(
      generation.beam_search,
      num_beams=args.beams,
      length_penalty=args.length_penalty,
      early_stopping=early,
      samples=args.samples,
      **same,
    )
    return lambda *model, first_prompt, **rest: search(*model, **rest)
  if args.method == "--penalty-alpha":
    search = partial(
      generation.contrastive_search, penalty_alpha=args.penalty_alpha, top_k=args.top_k, **same
    )
    return lambda *model, first_prompt, **rest: search(*model, **rest)
  same |= {"sampler": sampler, "seed": args.seed}
  same["stop"] = generation.StopStrings(subject.tokenizer, tuple(args.stop))
  if args.method == "--continuous":
    return partial(_serve, same=same)
  same["samples"] = args.samples
  if args.method is None:
    return partial(generation.generate, cache=cache(args), **same)
  speculate = partial(
    generation.speculate,
    draft=draft,
    draft_tokens=draft_tokens(args),
    **same,
  )
  return lambda *model, which, **numbers: speculate(*model, **numbers).completions


def _serve(model, variables, prompts, *, first_prompt, which, progress, same):
  from research import generation

  del which
  settings = dict(same)
  count = settings.pop("max_new_tokens")
  requests = [generation.Request(prompt, count) for prompt in prompts]
  found = {}
  for completion in generation.serve(
    model, variables, requests, first_prompt=first_prompt, **settings
  ):
    found[completion.prompt] = completion
    progress(1)
  return [found[i] for i in range(len(prompts))]


def _numbers(text: str) -> list[int]:
  """`0-2,5` is 0, 1, 2, 5."""
  found: list[int] = []
  for part in text.split(","):
    first, _, last = part.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
      raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers and ranges like 0-9,28,29")
    found += range(int(first), int(last or first) + 1)
  return found
