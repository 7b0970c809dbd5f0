"""hotstart: a sealed inference engine for language models with Gated DeltaNet layers."""

__version__ = "0.1.0"
