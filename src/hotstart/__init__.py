"""hotstart: a sealed inference engine for language models with Gated DeltaNet layers.

    from hotstart import LLM, SamplingParams

Public names are imported when they are first used, so that `import hotstart` itself takes no time.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotstart.config.engine import EngineConfig
    from hotstart.engine.llm import LLM
    from hotstart.engine.outputs import CompletionOutput, Logprob, RequestOutput
    from hotstart.errors import HotstartError
    from hotstart.request import SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineConfig",
    "HotstartError",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "LLM": "hotstart.engine.llm",
    "CompletionOutput": "hotstart.engine.outputs",
    "EngineConfig": "hotstart.config.engine",
    "HotstartError": "hotstart.errors",
    "Logprob": "hotstart.engine.outputs",
    "RequestOutput": "hotstart.engine.outputs",
    "SamplingParams": "hotstart.request",
    "StructuredOutputsParams": "hotstart.request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hotstart' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
