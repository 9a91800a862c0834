"""Servers as processes of their own: a free port, waiting until one is ready, and ending it. It needs Python alone."""

import socket
import subprocess
import time
import urllib.error
import urllib.request


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def started(process: subprocess.Popen[bytes], address: str, seconds: float) -> bool:
    """Wait until a server answers at /health, which it does once its models are loaded; whether it did in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except (OSError, urllib.error.URLError):  # 503 while it loads
            time.sleep(0.2)
    return False


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask it to end, and see to it that it has after so many seconds."""
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
