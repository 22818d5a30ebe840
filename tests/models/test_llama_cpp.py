"""llama.cpp runs the files that we write: the real model, where `llama-cpp-python` is installed.

It is no dependency of the tests: it is compiled for minutes. Its arithmetic is not ours: operands
of products are float16, or of 8 bits where kernels are quantized. So its greedy tokens are read by
our model, with the weights of the same file, and each must be the best of ours or nearly.
"""

import ctypes
from pathlib import Path

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from research import models
from research.data import chat
from research.io import gguf_write

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")

MESSAGES = [{"role": "user", "content": "Where is Paris, and what are 2 sights there?"}]
TOKENS = 20


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
  return models.load(smollm2_path)


@pytest.fixture(autouse=True)
def kernels_as_they_are(monkeypatch):
  """Where a CPU has AMX, llama.cpp repacks quantized kernels, and 0.3.36 of the package then ends
  the process, with a publisher's files too."""
  default = llama_cpp.llama_cpp.llama_model_default_params

  def parameters():
    found = default()
    found.use_extra_bufts = False
    return found

  monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", parameters)


@pytest.mark.parametrize("kind", [kind for kind in gguf_write.TYPES if kind.startswith("Q")])
def test_codes_are_those_of_the_c_code(kind):
  library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
  quantize = library.ggml_quantize_chunk
  quantize.restype = ctypes.c_size_t
  quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
  rng = np.random.default_rng(0)
  values = rng.standard_normal((1024, 576)) * 10.0 ** rng.integers(-4, 4, (1024, 1))
  values[:128] = np.round(rng.standard_normal((128, 576)) * 16)  # ties
  values[128] = 0
  values = values.astype(np.float32)
  ours = gguf_write.quantize(values, kind)
  theirs = np.zeros_like(ours)
  number = int(GGMLQuantizationType[kind])
  quantize(number, values.ctypes.data, theirs.ctypes.data, 0, *values.shape, None)
  np.testing.assert_array_equal(ours, theirs)


# How far below our best logit a token of theirs may be.
@pytest.mark.parametrize(
  ("kind", "gap"), [("F16", 0.02), ("BF16", 0.1), ("Q8_0", 0.1), ("Q4_0", 0.1), ("Q4_1", 0.1)]
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
  theirs.reset()  # what it has read would be read otherwise, and rounded otherwise
  answer = theirs.create_chat_completion(
    MESSAGES, temperature=0.0, max_tokens=TOKENS, repeat_penalty=1.0
  )
  # By the template in the file, too.
  assert answer["choices"][0]["message"]["content"] == tokenizer.decode(written)

  other, found, _ = models.load(path)
  row = np.array([[*prompt, *written]], np.int32)
  logits = jax.jit(other.apply)({"params": found}, row)[0, len(prompt) - 1 : -1]
  below = np.asarray(logits.max(-1) - logits[np.arange(len(written)), np.array(written)])
  assert len(written) >= 10
  assert below.max() <= gap
