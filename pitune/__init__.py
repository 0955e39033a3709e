"""pitune: transfer-learning studies with interpolated parameter-efficient experts."""

from pitune.errors import PituneError
from pitune.experts.checkpoint import load

__version__ = "0.1.0"
__all__ = ["PituneError", "__version__", "load"]
