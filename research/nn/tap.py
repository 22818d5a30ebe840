"""The one place where models and adapters meet."""

from typing import Any

import flax.linen as nn

OBSERVERS = "observers"  # the collection of what watches sites, which a caller makes mutable


def tap(module: nn.Module, site: str, value: Any, **context: Any) -> Any:
  """Returns `value` as the adapter bound at `site` transforms it, if one is.

  The adapter is the variable `site` of `module` in the `adapters` collection: a
  pytree with `__call__(value, *, rng, **context)`. `rng` is a key while the caller
  gives the model a `dropout` key, else None. What a site's context holds is the
  site's contract (docs/architecture.md).

  Where the collection `observers` is mutable, what is bound there at `site` becomes what its
  `observe(value=value, **context)` returns.
  """
  if module.is_mutable_collection(OBSERVERS):
    observer: Any = module.get_variable(OBSERVERS, site)
    if observer is not None:
      module.put_variable(OBSERVERS, site, observer.observe(value=value, **context))
  adapter: Any = module.get_variable("adapters", site)
  if adapter is None:
    return value
  rng = module.make_rng("dropout") if module.has_rng("dropout") else None
  return adapter(value, rng=rng, **context)
