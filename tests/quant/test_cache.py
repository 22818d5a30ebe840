"""A cache in few bits, against KIVI's rounding written plainly: a token, a block, a channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.quant.cache import CacheScheme, Codes, FewBits

B, N, K, SLOTS = 2, 2, 12, 96
RANDOM = np.random.default_rng(0)
KEYS = (RANDOM.normal(size=(B, N, K, SLOTS)) + 5 * np.arange(K)[:, None]).astype(np.float32)
VALUES = RANDOM.normal(size=(B, N, SLOTS, K)).astype(np.float32)


def rounded(x, bits):
  """`x [n]` on the grid from its least to its largest number, whose ends are held in float16."""
  step = np.float16((x.max() - x.min()) / np.float32(2**bits - 1)).astype(np.float32)
  least = np.float16(x.min()).astype(np.float32)
  codes = np.clip(np.rint((x - least) / (step or 1)), 0, 2**bits - 1)
  return codes * step + least


def plain(keys, values, last, scheme, first=0):
  """What a reader shall see after slot `last` was written, where tokens begin at slot `first`."""
  keys, values = keys[..., : last + 1].copy(), values[..., : last + 1, :].copy()
  wide, group = scheme.width(K), scheme.group
  for start in range(0, last + 1, group):
    if start + scheme.window > last // group * group:
      break  # this block and those after it are in the window
    stop = start + group
    block = slice(max(start, first + scheme.sinks), stop)
    if block.start >= stop:
      continue  # of sinks
    for at in np.ndindex(B, N):
      for channel in range(K):
        keys[(*at, channel, block)] = rounded(keys[(*at, channel, block)], scheme.bits)
      for slot in range(block.start, stop):
        for c in range(0, K, wide):
          part = (*at, slot, slice(c, c + wide))
          values[part] = rounded(values[part], scheme.bits)
  return keys, values


SCHEMES = [
  CacheScheme("int8", group=8, recent=8, sinks=0),
  CacheScheme("int4", group=4, recent=9, channels=4),
  CacheScheme("int2", group=12, recent=0, sinks=7),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.kind)
@pytest.mark.parametrize("prompt", [5, 24, 40])
def test_what_is_read_is_rounded_but_for_the_last_tokens(scheme, prompt):
  """A prompt, of which the first row has three slots of padding, and then token by token."""
  real = np.ones((B, prompt), bool)
  real[0, :3] = False
  slots = scheme.slots(80)
  cache = FewBits.of(KEYS[..., :prompt], VALUES[..., :prompt, :], real, scheme, slots)
  write = jax.jit(FewBits.write)
  for last in range(prompt, 64):
    k, v = KEYS[..., last, None].swapaxes(2, 3), VALUES[..., last, None, :]
    cache = write(cache, k, v, jnp.int32(last))
    if last % 7 and last < 60:
      continue
    keys, values = cache.read(last)
    assert keys.shape == (B, N, K, slots) and values.shape == (B, N, slots, K)
    for row in range(B):
      first = 0 if row else 3
      expected = plain(KEYS, VALUES, last, scheme, first)
      np.testing.assert_allclose(
        keys[row, ..., first : last + 1], expected[0][row, ..., first:], atol=1e-5
      )
      np.testing.assert_allclose(
        values[row, :, first : last + 1], expected[1][row, :, first:], atol=1e-5
      )
    kept = np.sum(np.all(np.asarray(keys[1, ..., : last + 1]) == KEYS[1, ..., : last + 1], (0, 1)))
    kept -= scheme.sinks  # which are away from the window by then
    assert scheme.recent <= kept <= scheme.window or last < scheme.window + scheme.sinks


def exact_noise(q, cache, last, scale):
  """3/8 of the variance of scores, of errors that are spread evenly over a step."""
  step = np.asarray(cache.keys.step, np.float64)  # [B, N, K, M]
  found = np.zeros((B, N * 3, 1, step.shape[-1] * cache.scheme.group))
  for row, head, slot in np.ndindex(B, N * 3, last + 1):
    exact = slot >= cache.scheme.kept(last) or 0 <= slot - cache.begin[row] < cache.scheme.sinks
    of = step[row, head // 3, :, slot // cache.scheme.group]
    if not exact:
      found[row, head, 0, slot] = -np.sum((q[row, head // 3, head % 3, 0] * scale * of) ** 2) / 32
  return found


def test_noise_of_scores_is_taken_back():
  scheme = CacheScheme("int2", group=12, recent=0, sinks=7)
  real = np.ones((B, 40), bool)
  real[0, :3] = False
  cache = FewBits.of(KEYS[..., :40], VALUES[..., :40, :], real, scheme, scheme.slots(80))
  q = RANDOM.normal(size=(B, N, 3, 1, K)).astype(np.float32)
  found = cache.bias(q, 39, 0.3)
  np.testing.assert_allclose(found, exact_noise(q, cache, 39, 0.3), rtol=1e-3, atol=1e-6)
  assert np.min(found) < -0.01 and not np.any(found[0, ..., 3:10])


@pytest.mark.parametrize(("kind", "bits"), [("int8", 9), ("int4", 5), ("int2", 4)])
def test_bytes(kind, bits):
  """Numbers in groups of 32, or of 16, with two float16, beside the rings."""
  scheme = CacheScheme(kind)
  cache = jax.eval_shape(
    lambda: FewBits.of(
      jnp.zeros((1, 1, 64, 4096), jnp.bfloat16),
      jnp.zeros((1, 1, 4096, 64), jnp.bfloat16),
      jnp.ones((1, 4096), bool),
      scheme,
      4096,
    )
  )
  size = {
    name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(getattr(cache, name)))
    for name in ("keys", "values", "recent_keys", "recent_values", "first_keys", "first_values")
  }
  numbers = 64 * 4096
  assert size["keys"] == size["values"] == numbers * bits // 8
  assert size["recent_keys"] == size["recent_values"] == 2 * 64 * scheme.window
  assert size["first_keys"] == size["first_values"] == 2 * 64 * scheme.group


def test_a_group_of_one_number_is_that():
  """Which needs no step."""
  x = jnp.array([[3.0] * 4, [0.0] * 4])
  np.testing.assert_array_equal(Codes.of(x, 2).read(2), x)


def test_mistakes():
  with pytest.raises(ValueError, match="a cache of 'int5'.*there are int8, int4, int2"):
    CacheScheme("int5")
  with pytest.raises(ValueError, match="group 6 is no multiple of 4"):
    CacheScheme("int4", group=6)
  with pytest.raises(ValueError, match="recent is a number of tokens, not -1"):
    CacheScheme("int4", recent=-1)
  with pytest.raises(ValueError, match="channels 6 is no multiple of 4"):
    CacheScheme("int4", channels=6)
  with pytest.raises(ValueError, match="sinks is from 0 to the group, 32, not 33"):
    CacheScheme("int4", sinks=33)
  real = np.ones((B, 8), bool)
  cache = FewBits.of(KEYS[..., :8], VALUES[..., :8, :], real, SCHEMES[0], 16)
  with pytest.raises(ValueError, match="a token at a time"):
    cache.write(jnp.zeros((B, N, 2, K)), jnp.zeros((B, N, 2, K)), 8)
