"""Every error a user of Nearfield can meet.

    NearfieldError
    ├── CheckpointError     a checkpoint is missing, damaged or of another kind
    ├── BundleError         a bundle is missing, damaged, incomplete or from a newer Nearfield
    ├── ExportError         a graph and a checkpoint do not fit together
    ├── QuantizationError   weights that cannot be quantized as asked
    ├── DeviceError         a device, its package or its driver is not there
    │   └── AudioDeviceError    microphone or speaker
    ├── StoreError          conversations cannot be kept or read back
    └── InputError          what the user gave cannot be used
        ├── AudioError
        ├── ImageError
        ├── ContextLimitError
        └── UnknownVoiceError

A message names the thing, what was expected, what was found and what to do.
This module imports nothing, and every folder may import it.
"""


class NearfieldError(Exception):
    """Base of all errors Nearfield raises on purpose; its text is meant for people."""


class CheckpointError(NearfieldError):
    """A checkpoint is missing, damaged, or not one Nearfield can read."""


class BundleError(NearfieldError):
    """A bundle is missing, damaged, incomplete, or written by a newer Nearfield."""


class ExportError(NearfieldError):
    """A graph and the checkpoint it is filled from do not fit together."""


class QuantizationError(NearfieldError):
    """Weights cannot be quantized as asked."""


class DeviceError(NearfieldError):
    """A device was asked for whose package, driver or hardware is not there."""


class AudioDeviceError(DeviceError):
    """A microphone or speaker is not there, is not the only one of its name, or gives no sound."""


class StoreError(NearfieldError):
    """Conversations cannot be kept or read back: the file is damaged, newer, busy, or there is no room."""


class InputError(NearfieldError):
    """Something the user gave cannot be used."""


class AudioError(InputError):
    """Audio that cannot be read, is empty, or has the wrong form."""


class ImageError(InputError):
    """An image or video frame that cannot be read or has the wrong form."""


class ContextLimitError(InputError):
    """A prompt, or a prompt with its reply, is longer than the context."""


class UnknownVoiceError(InputError):
    """A voice the bundle does not have."""
