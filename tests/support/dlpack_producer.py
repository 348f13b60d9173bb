"""A producer of DLPack tensors, made by hand: whatever the protocol allows, whichever library would do it."""

from __future__ import annotations

import ctypes

CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}  # by the kind of NumPy's dtype; bfloat16 is of kind V

c_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
is_valid = ctypes.pythonapi.PyCapsule_IsValid
is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", c_deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", c_deleter),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


class Producer:
    """Offers an array's memory; `deleted` counts the tensors that were given back, `capsules` are those handed out.

    tensor: fields of the tensor to change. no_strides: for a C-contiguous array. versioned: of version 1 rather than
    before it, which producers of then do not know max_version for either.
    """

    def __init__(self, array, *, versioned=True, major=1, read_only=False, no_strides=False, device=None, **tensor):
        self.array, self.versioned, self.major, self.read_only = array, versioned, major, read_only
        self.no_strides, self.device, self.tensor = no_strides, device or (1, 0), tensor
        self.capsules, self.deleted, self.alive = [], 0, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if not self.versioned and options:
            raise TypeError("unexpected keyword argument")
        x = self.array
        sizes = (ctypes.c_int64 * x.ndim)(*x.shape)
        steps = (ctypes.c_int64 * x.ndim)(*(stride // x.itemsize for stride in x.strides))
        tensor = Tensor(
            data=x.ctypes.data, device_type=self.device[0], device_id=self.device[1], ndim=x.ndim,
            code=CODES[x.dtype.kind], bits=8 * x.itemsize, lanes=1, shape=sizes,
            strides=None if self.no_strides else steps, byte_offset=0,
        )  # fmt: skip
        for name, value in self.tensor.items():
            setattr(tensor, name, value)
        deleter = c_deleter(self.delete)
        if self.versioned:
            managed = Versioned(self.major, 0, None, deleter, int(self.read_only), tensor)
        else:
            managed = Managed(tensor, None, deleter)
        self.alive.append((sizes, steps, deleter, managed))
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        self.capsules.append(new_capsule(ctypes.addressof(managed), name, None))
        return self.capsules[-1]

    def delete(self, address):
        self.deleted += 1

    def is_given_back(self):
        """Whether every capsule was used once, and its memory given back."""
        used = b"used_dltensor_versioned" if self.versioned else b"used_dltensor"
        return self.deleted == len(self.capsules) and all(is_valid(capsule, used) for capsule in self.capsules)
