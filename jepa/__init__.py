__version__ = "0.1.0"
from ._memory import keep_memory as _keep_memory
_keep_memory()
