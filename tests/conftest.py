"""What tests share."""

import json
import os
from importlib import metadata
from pathlib import Path

# Before JAX is imported anywhere: tests run on the CPU, whatever the machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compilation is nearly all of the tests' time, and tiny models run as fast without LLVM's
# optimizations: half of it goes. What JAX and XLA themselves do to a program stays.
_FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):  # a flag that a version lacks ends the process
  # The older code generator, in one piece, takes half the time again.
  _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
import tokenizers  # noqa: E402

from research.data.tokenizer import Tokenizer  # noqa: E402
from research.models import named  # noqa: E402

# The same examples each time: what passes here passes there. `--hypothesis-profile=default` draws.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
  """The GGUF file of SmolLM2-135M-Instruct: a real pretrained model with its tokenizer."""
  try:
    return named.fetch("smollm2-135m-instruct")
  except RuntimeError as error:  # a machine without a network that never fetched it
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def minilm_path() -> Path:
  """The directory of all-MiniLM-L6-v2: a real pretrained encoder with its tokenizer."""
  try:
    return named.fetch("all-minilm-l6-v2")
  except RuntimeError as error:
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def wordpiece_directory(tmp_path_factory) -> Path:
  """A BERT tokenizer as its publishers write it: lower case, `[CLS] text [SEP]`, `[MASK]`."""
  directory = tmp_path_factory.mktemp("wordpiece")
  words = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog s runs ##ning run ##s sad glad , . un ##glad"
  vocabulary = {word: i for i, word in enumerate(words.split())}
  backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
  backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )
  backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
  backend.enable_truncation(6)  # which is meant for somebody else's batches
  backend.save(str(directory / "tokenizer.json"))
  names = ("pad", "unk", "cls", "sep", "mask")
  config = {f"{name}_token": f"[{name.upper()}]" for name in names}
  config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  return directory


@pytest.fixture(scope="session")
def wordpiece(wordpiece_directory) -> Tokenizer:
  """The tokenizer of `wordpiece_directory`, of 19 tokens."""
  return Tokenizer.from_directory(wordpiece_directory)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
  """A token a byte, `<bos>` and `<eos>` (256 and 257), and a chat template."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(["<bos>", "<eos>"])
  template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
  return Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<eos>"}, (), template)


@pytest.fixture(scope="session")
def framing_tokenizer(byte_tokenizer) -> Tokenizer:
  """`byte_tokenizer`, which puts `<bos>` in front of text."""
  backend = tokenizers.Tokenizer.from_str(byte_tokenizer.backend.to_str())
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", 256)]
  )
  return Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<eos>"}, (), None)


@pytest.fixture(scope="session")
def ending_tokenizer(byte_tokenizer) -> Tokenizer:
  """The byte tokenizer where a token in three ends a text, so that toy models come to an end."""
  own = byte_tokenizer
  return Tokenizer(own.backend, own.special_tokens, range(0, 256, 3), own.chat_template)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """Forgets a module's compiled programs with it: those of all would take gigabytes."""
  yield
  jax.clear_caches()
