"""A terminal or a network written from the protocol's description alone, and nothing of the switch.

Blocking sockets, the standard library, and CMAC out of cryptography: whatever this client and the
switch agree on, they agree on through the bytes between them. It also makes the one-time codes that
a holder's app shows, and runs the program as a user of the command line does.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

ROOT = Path(__file__).parents[2]
CLIENT, SERVER = 1, 2
MAC_BYTES = 8
STEP_S = 60

type Message = dict[str, Any]
