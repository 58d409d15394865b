"""What all tests and their child processes share."""

import gc
import os

from tests.support.paths import SUPPORT

# No test speaks TLS with a real host. httpx and aiohttp read the machine's 140 root certificates for each client and in
# each process, 20 ms of work; here they find one, which has signed nothing.
os.environ["SSL_CERT_FILE"] = str(SUPPORT / "one_root.pem")

# Nearly all that torch and transformers make at their import stays, and it is much to look through: at Python's
# thresholds the collector takes a fifth of the import.
gc.set_threshold(100_000, 50, 50)
