"""The commands: one file each, with one function ``command``; the folder is the registry.

The file's name is the command's, the function's docstring its help. Heavy imports stand inside the function,
so that ``loralab --help`` starts at once.
"""

from loralab.core.registry import Registry

REGISTRY = Registry(__name__, list(__path__), "command")
