"""Every error a user can meet, as one tree.

    HotstartError
    ├── ConfigError                a wish or a checkpoint's config that cannot be honoured   (ValueError)
    │   ├── UnsupportedModel       architecture, config value or quantisation we do not implement
    │   └── InsufficientMemory     an explicit wish that the memory cannot meet
    ├── CheckpointError            files missing, corrupt, or tensors that do not match       (ValueError)
    ├── StartupError               a start-up phase failed; names the phase and the remedy
    │   └── WarmupError            a kernel could not be compiled, tuned, loaded or launched
    ├── RequestError               a request that is refused                                  (ValueError)
    │   ├── InvalidSamplingParams
    │   ├── InvalidPrompt          empty, or token ids outside the vocabulary
    │   ├── PromptTooLong
    │   └── QueueFull              too many requests are waiting already
    ├── StepError                  a step failed; its requests end with this error
    │   └── LateEventError         a compile, tuning, load or growth after the seal, under --strict
    └── EngineDead                 the engine has stopped; every request in it was answered

Messages carry the value, the limit and the remedy.  A mistake of our own is an `assert`, not one of these.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineDead",
    "HotstartError",
    "InsufficientMemory",
    "InvalidPrompt",
    "InvalidSamplingParams",
    "LateEventError",
    "PromptTooLong",
    "QueueFull",
    "RequestError",
    "StartupError",
    "StepError",
    "UnsupportedModel",
    "WarmupError",
]


class HotstartError(Exception):
    """The root: catch this to catch everything hotstart raises on purpose."""


class ConfigError(HotstartError, ValueError):
    pass


class UnsupportedModel(ConfigError):
    pass


class InsufficientMemory(ConfigError):
    pass


class CheckpointError(HotstartError, ValueError):
    pass


class StartupError(HotstartError):
    pass


class WarmupError(StartupError):
    pass


class RequestError(HotstartError, ValueError):
    pass


class InvalidSamplingParams(RequestError):
    pass


class InvalidPrompt(RequestError):
    pass


class PromptTooLong(RequestError):
    pass


class QueueFull(RequestError):
    pass


class StepError(HotstartError):
    pass


class LateEventError(StepError):
    pass


class EngineDead(HotstartError):
    pass
