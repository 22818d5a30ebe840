"""Our models as lm-evaluation-harness knows models, so that its tasks run on them unchanged.

What a request means is what it means for the harness's own model of Hugging Face checkpoints: how
texts are cut into tokens, what is cut off where they are too long, what begins a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from research import generation
from research.core import distributed, tree
from research.data import chat
from research.evals import progress
from research.generation import decode

_MAX_NEW_TOKENS = 256  # of an answer for which the task has no number
# What a task may ask of a sampler, by the names of transformers.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


class HarnessModel(TemplateLM):
  """A model with its variables and its tokenizer, behind the harness's three kinds of request.

  batch_size: rows at a time. Likelihoods are taken in batches of like lengths, and a context that
    several continuations share is read once; completions are written by `generation.serve`.
  max_length: tokens that the model is shown at most, by default all its positions.
  seed: of draws, where a task samples.
  """

  def __init__(
    self,
    model: Any,
    variables: Any,
    tokenizer: Any,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    name: str = "research",
  ):
    super().__init__()
    if not tokenizer.eos_ids:
      raise ValueError(f"the tokenizer of {name} has no EOS token, with which the harness begins")
    self.model, self.variables, self.tokenizer = model, variables, tokenizer
    self.batch_size = batch_size
    # What adapters put ahead of a text is not the harness's to count.
    self.max_length = max_length or model.config.max_positions - decode.ahead(variables)[1]
    self._seed, self._name = seed, name

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_ids[0]

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text without a context: BOS, or EOS where there is none."""
    bos = self.tokenizer.bos_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    return self._name.replace("/", "__")

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return self.tokenizer.chat_template if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    if self.tokenizer.chat_template is None:
      raise ValueError(f"{self._name} has no chat template")
    text = chat.render(
      self.tokenizer.chat_template,
      chat_history,
      add_generation_prompt,
      **self.tokenizer.special_tokens,
    )
    if add_generation_prompt:
      return text
    # The last message is gone on with, so what the template puts after it is left out.
    last = chat_history[-1]["content"].strip()
    return text[: text.rindex(last) + len(last)]

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Token ids; framed as the tokenizer frames texts, unless the text begins with BOS itself."""
    if add_special_tokens is None:
      bos = self.tokenizer.special_tokens.get("bos_token")
      add_special_tokens = not (bos and string.startswith(bos))
    return self.tokenizer.encode(string, add_special=add_special_tokens)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    prompts, completions = [], []
    for _, context, continuation in requests:
      kept = [*context, *continuation][-(self.max_length + 1) :]
      prompts.append(kept[: len(kept) - len(continuation)])
      completions.append(continuation)
    pairs = [*zip(prompts, completions, strict=True)]
    distributed.require_same({"likelihoods": pairs}, f"what {self._name} reads")
    with progress.bar(len(requests), "likelihoods", "request") as bar:
      found = generation.judge(
        self.model,
        self.variables,
        prompts,
        completions,
        batch_size=self.batch_size,
        progress=bar.update,
      )
    answers = [(sum(judgement.log_probs), judgement.greedy) for judgement in found]
    for (text, _, _), answer in zip(requests, answers, strict=True):
      if text is not None:  # else a window of a longer text, which is kept as a whole
        self.cache_hook.add_partial("loglikelihood", text, answer)
    return answers

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """The log-likelihood of each text, all of whose tokens are scored once, in windows."""
    windows, owners = [], []
    for i, request in enumerate(requests):
      rolling = utils.get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
      for window in map(utils.make_disjoint_window, rolling):
        windows.append((None, *window))
        owners.append(i)
    totals = [0.0] * len(requests)
    for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
      totals[i] += value
    for request, total in zip(requests, totals, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """What is written after each context, up to the first of its stop strings."""
    alike: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
    found = [""] * len(requests)
    with progress.bar(len(requests), "completions", "request") as bar:
      for key, chosen in alike.items():
        settings = normalize_gen_kwargs(json.loads(key), _MAX_NEW_TOKENS)
        sampler, until, count = _asked(settings)
        stop = generation.StopStrings(self.tokenizer, until)
        longest = self.max_length - count
        if longest < 1:
          raise ValueError(
            f"max_gen_toks {count} leaves no room for a prompt in {self.max_length} positions"
          )
        prompts = [self.tok_encode(requests[i].args[0])[-longest:] for i in chosen]
        distributed.require_same({"completions": prompts}, f"what {self._name} reads")
        for completion in generation.serve(
          self.model,
          self.variables,
          [generation.Request(prompt, count) for prompt in prompts],
          sampler,
          eos_ids=self.tokenizer.eos_ids,
          stop=stop,
          seed=self._seed,
          batch_size=min(self.batch_size, len(chosen)),
        ):
          i = chosen[completion.prompt]
          found[i] = stop.text(completion.tokens)
          self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
          bar.update()
    return found


def _asked(settings: Mapping[str, Any]) -> tuple[generation.Sampler, tuple[str, ...], int]:
  """The sampler, the stop strings and the number of tokens that a task's settings ask for."""
  rest = dict(settings)
  until = tuple(text for text in rest.pop("until") if text)
  count = rest.pop("max_gen_toks")
  draws = rest.pop("do_sample")
  for name in rest:
    if name not in _SAMPLING:
      raise ValueError(
        f"generation_kwargs ask for {name!r}{tree.nearest(name, _SAMPLING)}; known: until, "
        f"max_gen_toks, do_sample, {', '.join(_SAMPLING)}"
      )
  if not draws:
    # What filters draws has no say in which token is the most probable.
    return generation.Sampler(repetition_penalty=rest.get("repetition_penalty", 1.0)), until, count
  # Written without a temperature, to sample is to sample at 1.
  return generation.Sampler(**{**rest, "temperature": rest.get("temperature") or 1.0}), until, count
