"""ddlib: training CNNs by domain decomposition.

    image set → windows → local CNNs → probabilities (B, N, K) → aggregation → class

The method is eight files, to be read in this order:

    decomposition   windows on an image or a volume: grids, overlap, the coarse window, regions; cutting
    local           the N local CNNs as one module
    aggregation     average probability, geometric mean, majority vote, the dense network
    model           local CNNs and dense network as one coherent model
    strategies      the papers' procedures as one table: two steps, coherent, transfer, channels
    training        a recipe, and one training loop
    images          image sets as tensors; from images to a batch: mirror, shift, normalise
    channels        a network split along its width, and composed again (P3)

It stands on `networks` (the CNNs) and `_internal` (what nobody needs to read).  On it stand `parallel` (executors and
ranks) and the wings `data`, `study`, `report` and `cost`.

    B  images in a batch        Ω  the image, cut into N windows       P1, P2, P3  the papers, see README.md
    N  subdomains               δ  overlap, in pixels                  "ours"      chosen here, stated in no paper
    K  classes                  w  width: channels of the first block
    C  channels of an image     P  sub-networks of a split width

The public names are listed in `__init__.pyi`, in the order in which one meets them; each loads its module on first
use, so that `import ddlib` is quick.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
