"""
Become another program, whose files and shared memory nobody else can read.

    python private_files.py PROGRAM ARGUMENT...

A umask is not enough: the library that makes shared memory for Triton's Python backend
(boost::interprocess) allows everybody to read it by fchmod, right after it was made. So here fchmod
succeeds and does nothing, for this program and all it starts: the umask stays.
"""

import contextlib
import ctypes
import os
import struct
import subprocess
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_X86_64, _FCHMOD = 0xC000003E, 91  # AUDIT_ARCH_X86_64, and the number of the call there
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of BPF: see seccomp(2)
_ALLOW, _SUCCEED = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, and SECCOMP_RET_ERRNO with none
_FILTER = (
    (_LOAD, 0, 0, 4),  # the architecture
    (_EQUAL, 0, 3, _X86_64),
    (_LOAD, 0, 0, 0),  # the number of the call
    (_EQUAL, 0, 1, _FCHMOD),
    (_RETURN, 0, 0, _SUCCEED),
    (_RETURN, 0, 0, _ALLOW),
)


def keep_private() -> None:
    """For this process and its children, for ever. Raises OSError."""
    os.umask(0o077)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _FILTER))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(_FILTER), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, one, none, none, none),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), program, none, none),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


def _make_gpu_ready() -> None:
    """What CUDA would do by a program with root's rights, and from here on cannot."""
    if os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/nvidia-uvm"):
        with contextlib.suppress(OSError):
            subprocess.run(["nvidia-modprobe", "-c=0", "-u"], check=False)


if __name__ == "__main__":
    _make_gpu_ready()
    try:
        keep_private()
    except OSError as error:
        print(f"users of this machine can read Triton's shared memory: {error}", file=sys.stderr)
    os.execv(sys.argv[1], sys.argv[1:])
