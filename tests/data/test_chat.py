import concurrent.futures
import datetime

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from research.data.chat import encode_completion, encode_messages, encode_prompt, render
from research.data.tokenizer import Tokenizer
from research.io.gguf import read

SMOLLM2 = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
  "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
  " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- set date = strftime_now("%Y") if strftime_now is defined else "2024" %}
{%- if tools %}
  {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
  {%- for tool in tools %}
    {{- tool | tojson(indent=4) }}
  {%- endfor %}
  {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == "skip" %}{% continue %}{% endif %}
  {%- set header = "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" %}
  {%- if message.tool_calls %}
    {{- header + (message.tool_calls[0].function | tojson) + "<|eot_id|>" }}
  {%- else %}
    {{- header + message['content'] | trim + "<|eot_id|>" }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}"""
CHATML_GENERATION = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
  "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
  "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{%- endif %}
{% endfor %}"""
# Strips the thinking of all turns but the last, as Qwen3 and DeepSeek do.
THINKING = """{% for message in messages %}{% set content = message.content %}
{%- if message.role == 'assistant' and not loop.last %}
{%- set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TEMPLATES = {
  "smollm2": SMOLLM2,
  "llama3": LLAMA3,
  "generation": CHATML_GENERATION,
  "mistral": MISTRAL,
}

SPECIAL = (
  *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"),
  *("<|start_header_id|>", "<|end_header_id|>"),
)

CONVERSATION = [
  {"role": "user", "content": "  What is 2 + 2? <&> 'é日🐎'  "},
  {"role": "assistant", "content": "It's 4."},
  {"role": "user", "content": "And 3 + 3?\n"},
  {"role": "assistant", "content": "6"},
]


def _tokenizer(template: str | None, eos: str = "<|im_end|>", add_bos: bool = False) -> Tokenizer:
  """One token a byte, and one for two newlines, so that text can merge across a boundary."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([*alphabet, "ĊĊ"])}
  backend = tokenizers.Tokenizer(models.BPE(vocab, [("Ċ", "Ċ")]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
  if add_bos:
    backend.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
  special = {"bos_token": "<s>", "eos_token": eos, "pad_token": eos}
  return Tokenizer(backend, special, chat_template=template)


def _theirs(tokenizer: Tokenizer):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer.backend,
    chat_template=tokenizer.chat_template,
    **tokenizer.special_tokens,
  )


def _learned(tokenizer: Tokenizer, ids, mask) -> list[str]:
  """The text of each run of ones in the mask."""
  assert len(ids) == len(mask)
  assert set(mask) <= {0, 1}
  runs, previous = [], 0
  for token_id, bit in zip(ids, mask, strict=True):
    if bit and not previous:
      runs.append([])
    if bit:
      runs[-1].append(token_id)
    previous = bit
  return [tokenizer.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_and_encodes_as_transformers(name, prompt):
  tokenizer = _tokenizer(TEMPLATES[name], add_bos=True)
  theirs = _theirs(tokenizer)
  for messages in (CONVERSATION, CONVERSATION[:2], CONVERSATION[:1]):
    text = render(TEMPLATES[name], messages, prompt, **tokenizer.special_tokens)
    assert text == theirs.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=prompt
    )
    ids = encode_prompt(tokenizer, messages) if prompt else encode_messages(tokenizer, messages)[0]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)
    assert ids == expected["input_ids"]
    assert ids.count(tokenizer.bos_id) == text.count("<s>") <= 1  # no doubled BOS


def test_smollm2s_template_is_that_of_the_file(smollm2_path):
  assert read(smollm2_path).metadata["tokenizer.chat_template"] == SMOLLM2


WORDS = st.text(alphabet=st.sampled_from("ab \n\t<>&'\"{}%é🐎"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(WORDS, min_size=1, max_size=5))
def test_any_content_renders_as_transformers(contents):
  messages = [
    {"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)
  ]
  for tokenizer, theirs in _PAIRS:
    text = render(tokenizer.chat_template, messages, **tokenizer.special_tokens)
    assert text == theirs.apply_chat_template(messages, tokenize=False)


_PAIRS = [(t, _theirs(t)) for t in map(_tokenizer, TEMPLATES.values())]

TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "add",
      "description": "Adds <two> numbers & says 'é'.",
      "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
  }
]


def test_tools_and_json_without_html_escapes():
  call = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": "é<"}}}],
  }
  messages = [CONVERSATION[0], {**call, "content": None}, {"role": "tool", "content": "4"}]
  tokenizer = _tokenizer(LLAMA3)
  ours = render(LLAMA3, messages, tools=TOOLS, **tokenizer.special_tokens)
  assert ours == _theirs(tokenizer).apply_chat_template(messages, tools=TOOLS, tokenize=False)
  assert "Adds <two> numbers & says 'é'." in ours
  assert '{"name": "add", "arguments": {"a": "é<"}}' in ours


def test_what_a_template_can_see():
  template = (
    "{{ tools is none }} {{ documents is none }} {{ eos_token is defined }} {{ bos_token }}"
    " {{ strftime_now('%Y') }} {{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    " {{ messages[0].content is defined }}"
  )
  message = {"role": "assistant", "content": None, "tool_calls": [], "thinking": "hm"}
  ours = render(template, [message], bos_token="<s>")
  assert ours == f"True True False <s> {datetime.datetime.now():%Y} hm hm False"
  theirs = _theirs(_tokenizer(template)).apply_chat_template([message], tokenize=False)
  assert ours == theirs.replace("True True True", "True True False")  # theirs has an EOS


def test_loop_controls_and_block_trimming():
  template = (
    "{% for m in messages %}\n  {% if m.content == 'x' %}{% break %}{% endif %}\n"
    "{{ m.content }}{% endfor %}"
  )
  messages = [{"role": "user", "content": c} for c in ("a", "b", "x", "c")]
  ours = render(template, messages)
  assert ours == _theirs(_tokenizer(template)).apply_chat_template(messages, tokenize=False)
  assert ours == "ab"


def test_templates_cannot_change_what_they_are_given():
  with pytest.raises(ValueError, match="chat template: .*append.*unsafe"):
    render("{{ messages.append(1) }}", CONVERSATION)
  with pytest.raises(ValueError, match="chat template: .*unsafe"):
    render("{{ ''.__class__.__mro__ }}", CONVERSATION)


def test_mask_of_smollm2():
  tokenizer = _tokenizer(SMOLLM2)
  ids, mask = encode_messages(tokenizer, CONVERSATION)
  # EOS is learned although it is the pad token; the newline behind it is not.
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|im_end|>", "6<|im_end|>"]
  assert tokenizer.pad_id == tokenizer.eos_ids[0]


def test_mask_of_the_real_smollm2(smollm2_path):
  tokenizer = Tokenizer.from_gguf(read(smollm2_path).metadata)
  ids, mask = encode_messages(tokenizer, CONVERSATION[:2])
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|im_end|>"]
  assert sum(mask) == len(tokenizer.encode("It's 4.")) + 1
  # What is learned follows exactly the tokens that generation starts from.
  prompt = encode_prompt(tokenizer, CONVERSATION[:1])
  assert prompt == ids[: mask.index(1)]


def test_mask_of_llama3():
  tokenizer = _tokenizer(LLAMA3, eos="<|eot_id|>")
  ids, mask = encode_messages(tokenizer, CONVERSATION)
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|eot_id|>", "6<|eot_id|>"]


def test_mask_of_mistral():
  tokenizer = _tokenizer(MISTRAL, eos="</s>")
  ids, mask = encode_messages(tokenizer, CONVERSATION)
  assert _learned(tokenizer, ids, mask) == [" It's 4.</s>", " 6</s>"]


def test_mask_without_an_eos_token_is_the_whole_turn():
  tokenizer = _tokenizer(SMOLLM2, eos="</s>")  # a base model's EOS, which the template never writes
  ids, mask = encode_messages(tokenizer, CONVERSATION[:2])
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|im_end|>\n"]


def test_token_across_the_boundary_is_learned():
  template = (
    "{% for m in messages %}{{ m.role + ':\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
  )
  tokenizer = _tokenizer(template)
  ids, mask = encode_messages(
    tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n6"}]
  )
  assert _learned(tokenizer, ids, mask) == ["\n\n6"]


def test_no_assistant_nothing_learned():
  for template in (SMOLLM2, CHATML_GENERATION):
    ids, mask = encode_messages(_tokenizer(template), CONVERSATION[:1])
    assert mask == [0] * len(ids)


def test_two_assistant_messages_in_a_row():
  tokenizer = _tokenizer(SMOLLM2)
  messages = [*CONVERSATION[:2], {"role": "assistant", "content": "Sure."}]
  ids, mask = encode_messages(tokenizer, messages)
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|im_end|>", "Sure.<|im_end|>"]


def test_generation_blocks():
  tokenizer = _tokenizer(CHATML_GENERATION)
  ids, mask = encode_messages(tokenizer, CONVERSATION)
  assert _learned(tokenizer, ids, mask) == ["It's 4.<|im_end|>", "6<|im_end|>"]
  theirs = _theirs(tokenizer).apply_chat_template(
    CONVERSATION, return_dict=True, return_assistant_tokens_mask=True
  )
  assert ids == theirs["input_ids"]
  assert mask == theirs["assistant_masks"]


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(WORDS, min_size=2, max_size=6))
def test_generation_blocks_and_prefixes_mark_the_same(contents):
  """Two independent ways to one mask, for templates that render the same text."""
  blocks = CHATML_GENERATION
  plain = blocks.replace("{% generation %}", "").replace("{% endgeneration %}", "")
  assert "generation %" not in plain
  messages = [
    {"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)
  ]
  assert encode_messages(_tokenizer(blocks), messages) == encode_messages(
    _tokenizer(plain), messages
  )


def test_all_tokens_of_a_character_in_a_generation_block():
  # transformers' mask ends at the first of the four bytes.
  tokenizer = _tokenizer("{% generation %}{{ messages[0].content }}{% endgeneration %}")
  ids, mask = encode_messages(tokenizer, [{"role": "assistant", "content": "a🐎"}])
  assert mask == [1] * 5


def test_generation_blocks_from_many_threads():
  tokenizer = _tokenizer(CHATML_GENERATION)
  rows = [[*CONVERSATION[:1], {"role": "assistant", "content": "x" * i}] for i in range(200)]
  expected = [encode_messages(tokenizer, row) for row in rows]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda row: encode_messages(tokenizer, row), rows)) == expected


def test_generation_block_that_cannot_be_located():
  template = (
    "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}>{{ x }}"
  )
  with pytest.raises(ValueError, match="generation block is nested"):
    encode_messages(_tokenizer(template), CONVERSATION[:1])


def test_template_that_rewrites_earlier_turns():
  tokenizer = _tokenizer(THINKING)
  thinking = {"role": "assistant", "content": "<think>hm</think>4"}
  ids, mask = encode_messages(tokenizer, [CONVERSATION[0], thinking])
  assert _learned(tokenizer, ids, mask) == ["<think>hm</think>4<|im_end|>"]
  with pytest.raises(ValueError, match=r"before message 1 \(assistant\).*generation") as caught:
    encode_messages(tokenizer, [CONVERSATION[0], thinking, *CONVERSATION[2:]])
  assert "\n" not in str(caught.value)


def test_generation_prompt_that_history_lacks():
  tokenizer = _tokenizer(SMOLLM2.replace("assistant\n' }}", "assistant\n<think>\n' }}"))
  with pytest.raises(ValueError, match=r"before message 1 \(assistant\)"):
    encode_messages(tokenizer, CONVERSATION[:2])


def test_completion_of_strings():
  tokenizer = _tokenizer(None, add_bos=True)
  ids, mask = encode_completion(tokenizer, "2 + 2 =", " 4")
  assert tokenizer.decode(ids, skip_special=False) == "<s>2 + 2 = 4<|im_end|>"
  assert _learned(tokenizer, ids, mask) == [" 4<|im_end|>"]


@pytest.mark.parametrize("completion", [" 4", " 4<|im_end|>"])
def test_eos_is_appended_once(completion):
  tokenizer = _tokenizer(None)
  ids, mask = encode_completion(tokenizer, "2 + 2 =", completion)
  assert _learned(tokenizer, ids, mask) == [" 4<|im_end|>"]
  assert ids.count(tokenizer.eos_ids[0]) == 1


def test_prompt_that_starts_with_bos():
  tokenizer = _tokenizer(None, add_bos=True)
  assert encode_completion(tokenizer, "<s>a", "b") == encode_completion(tokenizer, "a", "b")


def test_boundary_is_the_common_token_prefix():
  tokenizer = _tokenizer(None)
  ids, mask = encode_completion(tokenizer, "a\n", "\nb")
  assert _learned(tokenizer, ids, mask) == ["\n\nb<|im_end|>"]  # one token for both newlines
  ids, mask = encode_completion(tokenizer, "a", "")
  assert _learned(tokenizer, ids, mask) == ["<|im_end|>"]


def test_completion_of_messages():
  tokenizer = _tokenizer(SMOLLM2, add_bos=True)
  ids, mask = encode_completion(tokenizer, CONVERSATION[:3], CONVERSATION[3:])
  assert ids == encode_messages(tokenizer, CONVERSATION)[0]
  assert _learned(tokenizer, ids, mask) == ["6<|im_end|>"]  # the first answer is prompt
  assert ids[: mask.index(1)] == encode_prompt(tokenizer, CONVERSATION[:3])


def test_completion_that_changes_its_prompt():
  template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
  with pytest.raises(ValueError, match="prompt is rendered differently"):
    encode_completion(_tokenizer(template), CONVERSATION[:1], CONVERSATION[1:2])


def test_completion_of_mixed_kinds():
  with pytest.raises(
    ValueError, match="both be strings or both lists of messages, not str and list"
  ):
    encode_completion(_tokenizer(SMOLLM2), "a", CONVERSATION[1:2])


def test_completion_without_an_eos_token():
  backend = _tokenizer(None).backend
  with pytest.raises(ValueError, match="no EOS token"):
    encode_completion(Tokenizer(backend, {}), "a", "b")


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ([{"role": "assistent", "content": "x"}], "message 0 has role 'assistent'.*mean 'assistant'"),
    ([CONVERSATION[0], {"content": "x"}], "message 1 has no 'role', only 'content'"),
    ([{"role": "user"}], r"message 0 \(user\) has neither 'content' nor 'tool_calls'"),
    ([{"role": "user", "content": None}], "neither 'content'"),
    (["hello"], "message 0 is a str, not a mapping"),
    ([{"role": "user", "content": 4}], "chat template: .*concatenate"),
  ],
)
def test_wrong_messages(messages, message):
  for act in (encode_messages, encode_prompt):
    with pytest.raises(ValueError, match=message) as caught:
      act(_tokenizer(SMOLLM2), messages)
    assert "\n" not in str(caught.value)


def test_template_that_refuses_the_order_of_roles():
  tokenizer = _tokenizer(MISTRAL)
  with pytest.raises(ValueError, match="chat template: Conversation roles must alternate"):
    render(MISTRAL, CONVERSATION[1:], **tokenizer.special_tokens)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0].nothing.at_all }}"])
def test_broken_template(template):
  with pytest.raises(ValueError, match="chat template: ") as caught:
    render(template, CONVERSATION)
  assert "\n" not in str(caught.value)


def test_no_template():
  with pytest.raises(ValueError, match="no chat template"):
    encode_messages(_tokenizer(None), CONVERSATION)
