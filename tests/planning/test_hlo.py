"""Programs for TPUs that are not here: loops, bytes and collectives against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.core import chips, sharding
from research.planning import hlo

N = 1024


@pytest.fixture(scope="module")
def mesh(devices):
  sizes = {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
  return sharding.make_mesh(sizes, devices("v5e:2x2"))


def _tally(mesh, function, *specs, out, shape=(N, N)):
  args = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
    for spec in specs
  ]
  places = NamedSharding(mesh, PartitionSpec(*out))
  text = jax.jit(function, out_shardings=places).lower(*args).compile().as_text()
  return hlo.Program(text).tally()


def test_a_loop_counts_as_often_as_it_runs(mesh):
  def loop(count):
    def run(x, m):
      return jax.lax.scan(lambda c, _: (c @ m, None), x, length=count)[0]

    return _tally(mesh, run, ("fsdp",), (), out=("fsdp",), shape=(4 * N, 4 * N))

  six, twelve = loop(6), loop(12)
  assert twelve.cycles / six.cycles == pytest.approx(2, rel=0.1)
  chip = chips.find(mesh.devices.flat[0].device_kind)
  ideal = 6 * 2 * (4 * N) ** 3 / 4 / chip.flops
  # The compiler expects no more than the data sheet, and not much less.
  assert 1 <= six.cycles / chip.clock / ideal < 2


UNREAD = """
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={}, to_apply=%add
}

%condition (p.1: f32[8]) -> pred[] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %more = pred[] custom-call(%p.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %while.7 = f32[8]{0} while(%x), condition=%condition, body=%body
}
"""


def test_what_the_text_does_not_tell_is_told():
  program = hlo.Program(UNREAD)
  assert program.tally().sent == {"all-reduce": 2 * 1 / 2 * 8 * 4}
  assert program.unread == {
    "how often the loop while.7 runs (once)",
    "how many devices take part in all-reduce.3 (two)",
  }


def test_collectives_are_told_by_what_they_send(mesh):
  whole = 2 * N * N
  gathered = _tally(mesh, lambda x: x, ("fsdp",), out=())
  assert gathered.sent == {"all-gather": 3 / 4 * whole}
  summed = _tally(mesh, lambda x, m: x @ m, (None, "fsdp"), ("fsdp",), out=())
  # Sums of float32 products go round twice; they may be rounded before that.
  assert summed.sent["all-reduce"] in (2 * 3 / 4 * whole, 2 * 3 / 4 * 2 * whole)


def test_bytes_are_those_of_memory(mesh):
  shape = (64 * N, N)
  added = _tally(mesh, lambda x: x + 1, ("fsdp",), out=("fsdp",), shape=shape)
  assert added.bytes == pytest.approx(2 * 2 * 64 * N * N / 4, rel=0.05)
