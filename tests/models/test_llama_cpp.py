"""llama.cpp runs the files that we write: the real model, where `llama-cpp-python` is installed.

It is no dependency of the tests: it is compiled for minutes. Its arithmetic is not ours: operands
of products are float16, or of 8 bits where kernels are quantized. So its greedy tokens are read by
our model, with the weights of the same file, and each must be the best of ours or nearly.
"""

import jax
import numpy as np
import pytest

from research import models
from research.data import chat

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")

MESSAGES = [{"role": "user", "content": "Where is Paris, and what are 2 sights there?"}]
TOKENS = 20


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
  return models.load(smollm2_path)


# How far below our best logit a token of theirs may be.
@pytest.mark.parametrize(
  ("kind", "gap"), [("F16", 0.02), ("BF16", 0.1), ("Q8_0", 0.3), ("Q4_0", 0.5), ("Q4_1", 0.5)]
)
def test_greedy_tokens(tmp_path, smollm2, kind, gap):
  model, params, tokenizer = smollm2
  path = tmp_path / f"{kind}.gguf"
  models.save_gguf(path, model, params, tokenizer, kind)
  theirs = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
  prompt = chat.encode_prompt(tokenizer, MESSAGES)
  text = tokenizer.decode(prompt, skip_special=False)
  assert theirs.tokenize(text.encode(), add_bos=False, special=True) == prompt
  written = []
  for token in theirs.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
    if token in tokenizer.eos_ids or len(written) == TOKENS:
      break
    written.append(token)
  answer = theirs.create_chat_completion(
    MESSAGES, temperature=0.0, max_tokens=TOKENS, repeat_penalty=1.0
  )
  # By the template in the file, too.
  assert answer["choices"][0]["message"]["content"] == tokenizer.decode(written)

  other, found, _ = models.load(path)
  row = np.array([[*prompt, *written]], np.int32)
  logits = jax.jit(other.apply)({"params": found}, row)[0, len(prompt) - 1 : -1]
  below = np.asarray(logits.max(-1) - logits[np.arange(len(written)), np.array(written)])
  print(kind, f"{int((below == 0).sum())} of {len(written)} are our best, gap {below.max():.4f}")
  assert len(written) >= 10
  assert below.max() <= gap
