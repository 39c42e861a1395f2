"""ddlib: training CNNs by domain decomposition.

    image set → windows → local CNNs → probabilities (B, N, K) → aggregation → class

The public names are those of `__init__.pyi`; each loads its module on first use, so that `import ddlib` is quick.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
