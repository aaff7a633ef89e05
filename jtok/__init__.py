"""Everything that happens to a token, in JAX.

The packages load when they are first used, so `import jtok` costs nothing and touches
neither a device nor a global setting.

```python
lm = jtok.models.load("path/to/a/hugging-face-folder")
out = jtok.decode.generate(lm, "def fibonacci(n):", max_new_tokens=64)
```
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jtok import classify as classify
    from jtok import compress as compress
    from jtok import decode as decode
    from jtok import embed as embed
    from jtok import errors as errors
    from jtok import models as models
    from jtok import nn as nn
    from jtok import ops as ops
    from jtok import papers as papers
    from jtok import predict as predict
    from jtok import testing as testing
    from jtok import text as text
    from jtok import train as train

__version__ = "0.1.0"

__all__ = [
    "classify",
    "compress",
    "decode",
    "embed",
    "errors",
    "models",
    "nn",
    "ops",
    "papers",
    "predict",
    "testing",
    "text",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"jtok.{name}")
    raise AttributeError(f"module 'jtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
