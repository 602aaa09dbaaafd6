"""The routes: one file a group, with ``router``, an ``APIRouter``; the folder is the registry.

A route gets what all share as a parameter of type `SiteOf`, and who asks as one of type `CallerOf` or, where
only the admin key will do, `AdminOf`.
"""

from loralab.core.registry import Registry

REGISTRY = Registry(__name__, list(__path__), "route")
