"""ReSTR: the method, in the order of the paper's section 3."""

from models.checkpoint import load_restr
from models.config import ReSTRConfig
from models.reference import from_reference, to_reference
from models.restr import ReSTR, build_restr

__all__ = ["ReSTR", "ReSTRConfig", "build_restr", "from_reference", "load_restr", "to_reference"]
